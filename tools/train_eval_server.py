"""The demo's skills asked of a running server, as a client asks: over HTTP, pictures and clips as files."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

import aiohttp

from dgemma_jax.training.demo.acceptance import Score, grade
from dgemma_jax.training.demo.example import Example
from dgemma_jax.training.demo.requests import reply_of, request_of

AT_ONCE = 8


def score(url: str, examples: Sequence[Example]) -> Score:
    """The server's answers to the examples, each with its number as seed. The server does not tell of single canvases.

    Raises:
        OSError: the server cannot be reached.
        ValueError: it refuses a question, or is no such server.
    """
    answers = asyncio.run(_ask_all(url.rstrip("/"), examples))
    taken = [answer["usage"]["diffusion"] for answer in answers]
    steps = sum(told["steps"] for told in taken) / sum(told["canvases"] for told in taken)
    return grade(examples, [reply_of(answer) for answer in answers], steps, None)


async def _ask_all(url: str, examples: Sequence[Example]) -> list[dict[str, Any]]:
    answers: list[dict[str, Any]] = [{}] * len(examples)
    numbers = itertools.count()
    async with aiohttp.ClientSession() as session:
        model = (await _decoded(session.get(f"{url}/v1/models")))["data"][0]["id"]

        async def ask() -> None:
            while (number := next(numbers)) < len(examples):
                body = request_of(examples[number]) | {"model": model, "seed": number}
                answers[number] = await _decoded(session.post(f"{url}/v1/chat/completions", json=body))

        await asyncio.gather(*(ask() for _ in range(AT_ONCE)))
    return answers


async def _decoded(asked: AbstractAsyncContextManager[aiohttp.ClientResponse]) -> dict[str, Any]:
    async with asked as response:
        body = await response.text()
    if response.status != 200:
        raise ValueError(f"{response.url} was answered {response.status}: {body[:500]}")
    decoded: dict[str, Any] = json.loads(body)
    return decoded
