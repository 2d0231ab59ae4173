"""An engine whose replies can be computed by hand: a token is a character, a canvas is four of them."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Generator, Sequence
from typing import Any

from fake_text import BOS, FakeText

from serve.engine import (
    AnswerFormat,
    Call,
    Canvas,
    Draft,
    Event,
    Failed,
    Finished,
    FormatError,
    Job,
    MediumError,
    Piece,
    Prefilled,
    Prompt,
    PromptError,
    PromptLengthError,
    Sampling,
    TokenLogprob,
)

CANVAS = 4
STEPS = 3
OPEN_THOUGHT, CLOSE_THOUGHT, END = "\x01", "\x02", "\x03"
OPEN_CALL, CLOSE_CALL, PLACE = "\x04", "\x05", "\x06"
PATIENCE = 5.0


def content_of(message: dict[str, Any]) -> str:
    content = message["content"]
    return content if isinstance(content, str) else "".join(part.get("text", PLACE) for part in content)


def parts_of(message: dict[str, Any]) -> list[dict[str, Any]]:
    return message["content"] if isinstance(message["content"], list) else []


def call(name: str, arguments: str = "{}") -> str:
    """A call as the fake model writes it."""
    return f"{OPEN_CALL}{name}{arguments}{CLOSE_CALL}"


def logprobs_of(tokens: Sequence[int], likeliest: int | None) -> tuple[TokenLogprob, ...] | None:
    """Every token is the likeliest in its place, with -code/1000; the next characters follow, one less likely each."""
    if likeliest is None:
        return None
    return tuple(
        TokenLogprob(-token / 1000, tuple((token + after, -token / 1000 - after) for after in range(likeliest)))
        for token in tokens
    )


def _drafts(tokens: tuple[int, ...], every: int) -> Generator[Draft, None, None]:
    """A canvas before it is done: after each step one more token is right, the others are question marks."""
    for step in range(1, STEPS):
        if every and step % every == 0:
            yield Draft(tokens[:step] + (ord("?"),) * (CANVAS - step), step)


class FakeParser:
    """Character by character; thoughts and calls stand between control characters, and one more ends the reply."""

    def __init__(self) -> None:
        self.tokens = 0
        self.reasoning_tokens = 0
        self.ended = False
        self._thinking = False
        self._call: str | None = None

    def push(self, tokens: Sequence[int]) -> list[Piece | Call]:
        pieces: list[Piece | Call] = []
        for character in map(chr, tokens):
            if self.ended:
                break
            self.tokens += 1
            self.reasoning_tokens += self._thinking
            if character in (OPEN_THOUGHT, CLOSE_THOUGHT):
                self._thinking = character == OPEN_THOUGHT
            elif character == END:
                self.ended = True
                pieces += self.finish()
            elif character == OPEN_CALL:
                self._call = ""
            elif character == CLOSE_CALL and self._call is not None:
                name, _, arguments = self._call.partition("{")
                pieces.append(Call(name, "{" + arguments))
                self._call = None
            elif self._call is not None:
                self._call += character
            else:
                pieces.append(Piece("reasoning" if self._thinking else "content", character))
        return pieces

    def finish(self) -> list[Piece | Call]:
        cut, self._call = self._call, None
        return [Piece("content", cut)] if cut else []


class FakeEngine:
    """Answers `You said: <last message>`, after a thought if thinking is on; a step is a canvas of each job in a slot.

    `answer` replaces the reply's text; a message "explode" fails after the first canvas,
    "outgrow" because of its format; "hold" waits for `release`
    before each canvas but the first, so that a test decides how far the reply is. A medium is a text, its own place in
    the prompt: `<kind detail length-of-the-file>`; the file `broken` is none.
    """

    max_model_len = 400
    dtype = "float32"
    text = FakeText(max_model_len)
    sampling = Sampling(max_steps=48, entropy_bound=0.1, confidence_threshold=0.005, t_min=0.4, t_max=0.8)

    def __init__(self, answer: Callable[[str], str] | None = None) -> None:
        self.answer = answer or (lambda said: f"You said: {said}")
        self.media = frozenset({"image", "video"})
        self.rendered: list[list[dict[str, Any]]] = []
        self.tools: list[list[dict[str, Any]] | None] = []
        self.jobs: list[Job] = []
        self.ended: list[str] = []
        self.cached_tokens = 0
        self.release = threading.Event()
        self.warm_up_error: Exception | None = None
        self.broken: BaseException | None = None
        self.slots = 1
        self._ids = itertools.count()
        self._open: dict[int, Generator[Event | None, None, None]] = {}
        self._cancelled: set[int] = set()

    def render(
        self, messages: list[dict[str, Any]], *, thinking: bool, tools: list[dict[str, Any]] | None = None
    ) -> tuple[int, ...]:
        self.rendered.append(messages)
        self.tools.append(tools)
        said = content_of(messages[-1])
        if said == "refuse":
            raise PromptError("roles must alternate")
        if said.count(PLACE) != sum(part["type"] != "text" for part in parts_of(messages[-1])):
            raise PromptError("a picture, but none was sent")
        if len(said) > 10 * self.max_model_len:
            raise PromptLengthError(len(said))
        return tuple(map(ord, (OPEN_THOUGHT if thinking else "") + said))

    def medium_bytes(self, kind: str, detail: str) -> int:
        return {"image": 10, "video": 40}[kind]

    def read(self, data: bytes, kind: str, detail: str) -> str:
        if data == b"broken":
            raise MediumError("the file is damaged")
        return f"<{kind} {detail} {len(data)}>"

    def expand(self, prompt: Sequence[int], media: Sequence[Any]) -> Prompt:
        coming = iter(media)
        return Prompt(
            tokens=tuple(
                index for token in prompt for index in (map(ord, next(coming)) if token == ord(PLACE) else (token,))
            )
        )

    def grammar(self, format: AnswerFormat, prompt: Sequence[int], *, thinking: bool) -> AnswerFormat:
        if format.regex == "refuse":
            raise FormatError("it makes no sense")
        return format

    def room(self, prompt_tokens: int) -> int:
        return (self.max_model_len - prompt_tokens) // CANVAS * CANVAS

    def parser(self, prompt: Sequence[int]) -> FakeParser:
        return FakeParser()

    def warm_up(self, progress: Callable[[str], None]) -> None:
        progress("nothing")
        if self.warm_up_error:
            raise self.warm_up_error

    def close(self) -> None:
        pass

    def submit(self, job: Job) -> int:
        id = next(self._ids)
        self._open[id] = self._generate(job)
        return id

    def cancel(self, id: int) -> None:
        self._cancelled.add(id)

    @property
    def running(self) -> int:
        return min(self.slots, len(self._open))

    @property
    def memory_share(self) -> float:
        return self.running / self.slots

    @property
    def busy(self) -> bool:
        return bool(self._open)

    def step(self) -> list[tuple[int, Event]]:
        if self.broken:
            raise self.broken
        for id in self._cancelled & self._open.keys():
            self._open.pop(id).close()
        self._cancelled.clear()
        events = [(id, event) for id in list(self._open)[: self.slots] if (event := self._advance(id)) is not None]
        time.sleep(0 if events else 0.001)  # all that run are held
        return events

    def _advance(self, id: int) -> Event | None:
        try:
            event = next(self._open[id])
        except (FloatingPointError, FormatError) as error:
            event = Failed(error)
        if isinstance(event, Failed | Finished):
            self._open.pop(id).close()
        return event

    def _generate(self, job: Job) -> Generator[Event | None, None, None]:
        """A job's events; None where it is held."""
        said = "".join(map(chr, job.prompt))
        thought = f"{OPEN_THOUGHT}Hmm.{CLOSE_THOUGHT}" if said.startswith(OPEN_THOUGHT) else ""
        said = said.removeprefix(OPEN_THOUGHT).removeprefix(BOS)
        text = thought + self.answer(said) + END
        whole, text = text, text[: job.max_new_tokens]
        ending = "abandoned"
        self.jobs.append(job)
        try:
            yield Prefilled(self.cached_tokens)
            for start in range(0, len(text), CANVAS):
                tokens = tuple(map(ord, text[start : start + CANVAS]))
                yield from _drafts(tokens, job.draft_every)
                while start and said.startswith("hold") and not self.release.is_set():
                    yield None
                if start and said == "explode":
                    raise FloatingPointError("a secret of the engine")
                if start and said == "outgrow":
                    raise FormatError("the grammar became too large")
                yield Canvas(tokens, STEPS, logprobs_of(tokens, job.logprobs))
            ending = "finished"
            yield Finished("stop" if text == whole else "length")
        finally:
            self.ended.append(ending)
