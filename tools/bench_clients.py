"""Clients of a server: requests of mixed lengths, no two alike, asked so many at a time, and what became of each."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import aiohttp

_TOLD = "Hello, I am {name} from {city}, and my number is {number}. "
_QUESTIONS = (
    _TOLD + "What is my name?",
    _TOLD + "What is my number?",
    _TOLD + "Where do I live?",
    "Count from {low} to {high}.",
    "Give me the first {few} multiples of {low}.",
    "What is {low} plus {few}?",
)
"""In words that the demo model knows. The answer follows from what is drawn: a text of another request shows."""
_NAMES = "Anna Ben Clara David Emma Felix Grace Hugo Ivan Julia Karl Lena Mia Noah Olga Paul Rosa Sam Tim Uma"
_CITIES = "Berlin Lima London Madrid Oslo Paris Rome Tokyo"
_FILLER = "The weather was fine, the train was late, and nobody on the platform knew why. "
_MOST_TOKENS = (16, 48, 96, 160)
_LONG = (0, 0, 0, 2, 8, 20)
"""How often the filler stands before a question: most prompts are short, a few are long."""


@dataclasses.dataclass(frozen=True)
class Asked:
    """One request for text: whose it is, and its body."""

    index: int
    body: dict[str, Any]


@dataclasses.dataclass
class Told:
    """What became of a request. Times are seconds since it was sent; `error` says why there is no answer.

    arrivals: of the pieces of text, each a canvas.
    """

    index: int
    text: str = ""
    arrivals: list[float] = dataclasses.field(default_factory=list)
    seconds: float = 0.0
    tokens: int = 0
    canvases: int = 0
    steps: int = 0
    error: str | None = None

    @property
    def gaps(self) -> list[float]:
        """Seconds from one canvas to the next."""
        return [late - early for early, late in zip(self.arrivals, self.arrivals[1:], strict=False)]


def workload(count: int, model: str, longest: int, seed: int) -> list[Asked]:
    """Requests with prompts and limits of mixed lengths, no prompt twice, each with a seed of its own.

    longest: characters of a prompt, where its question is no longer.
    """
    rng = random.Random(seed)
    made, known = [], set[str]()
    for index in range(count):
        while (said := _prompt(rng, longest)) in known:
            pass
        known.add(said)
        body = {
            "model": model,
            "messages": [{"role": "user", "content": said}],
            "max_tokens": rng.choice(_MOST_TOKENS),
            "seed": rng.randrange(2**31),
            "stream": True,
            "stream_options": {"include_usage": True},
            "chat_template_kwargs": {"thinking": False},
        }
        made.append(Asked(index, body))
    return made


def _prompt(rng: random.Random, longest: int) -> str:
    low = rng.randrange(2, 150)
    question = rng.choice(_QUESTIONS).format(
        name=rng.choice(_NAMES.split()),
        city=rng.choice(_CITIES.split()),
        number=rng.randrange(1000),
        low=low,
        high=low + rng.randrange(3, 40),
        few=rng.randrange(3, 16),
    )
    room = max(0, longest - len(question))
    return _FILLER * min(rng.choice(_LONG), room // len(_FILLER)) + question


async def drive(
    session: aiohttp.ClientSession, requests: Sequence[Asked], clients: int, done: Callable[[], None]
) -> list[Told]:
    """Asks all of them, `clients` at a time; `done` is called after each. The answers are in their order."""
    coming = iter(requests)
    told: list[Told] = []

    async def client() -> None:
        for request in coming:
            told.append(await ask(session, request))
            done()

    await asyncio.gather(*(client() for _ in range(clients)))
    return sorted(told, key=lambda one: one.index)


async def ask(session: aiohttp.ClientSession, request: Asked) -> Told:
    """Asks once. What goes wrong is in the answer's `error`."""
    told, start = Told(request.index), time.perf_counter()
    try:
        async with session.post("v1/chat/completions", json=request.body) as response:
            if response.status != 200:
                told.error = f"status {response.status}: {(await response.text())[:300]}"
            else:
                await _read(response, told, start)
    except (aiohttp.ClientError, TimeoutError) as error:
        told.error = f"{type(error).__name__}: {error}"
    told.seconds = time.perf_counter() - start
    return told


async def _read(response: aiohttp.ClientResponse, told: Told, start: float) -> None:
    ended = False
    async for data in _frames(response):
        ended = data == "[DONE]"
        chunk = {} if ended else json.loads(data)
        if error := chunk.get("error"):
            told.error = error["message"]
        for choice in chunk.get("choices", ()):
            if text := choice["delta"].get("content"):
                told.arrivals.append(time.perf_counter() - start)
                told.text += text
        if usage := chunk.get("usage"):
            told.tokens = usage["completion_tokens"]
            told.canvases, told.steps = usage["diffusion"]["canvases"], usage["diffusion"]["steps"]
    if not ended:
        told.error = told.error or "the stream ended before its end"


async def _frames(response: aiohttp.ClientResponse) -> AsyncIterator[str]:
    async for line in response.content:
        if line.startswith(b"data: "):
            yield line.removeprefix(b"data: ").strip().decode()


async def resident_bytes(session: aiohttp.ClientSession) -> int | None:
    """The server's resident memory, as its own metrics tell it; None where they do not."""
    async with session.get("metrics") as response:
        lines = (await response.text()).splitlines()
    found = [line.split()[1] for line in lines if line.startswith("process_resident_memory_bytes ")]
    return int(float(found[0])) if found else None
