"""The real app over a real socket, with the fake engine behind it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import openai
import pytest
from aiohttp.test_utils import TestClient, TestServer
from fake_engine import FakeEngine

from serve.app import create_app
from serve.config import ServeConfig
from serve.handlers import WORKER

Start = Callable[..., contextlib.AbstractAsyncContextManager[TestClient]]
Ask = Callable[..., dict[str, Any]]


@pytest.fixture
def engine() -> Iterator[FakeEngine]:
    fake = FakeEngine()
    yield fake
    fake.release.set()


@pytest.fixture
def start(engine: FakeEngine) -> Start:
    """Starts the server with the given settings; the context gives a client."""

    @contextlib.asynccontextmanager
    async def started(**settings: Any) -> AsyncIterator[TestClient]:
        defaults = {"served_model_name": ("demo", "org/alias"), "seed": 1, "shutdown_seconds": 0.2, "thinking": False}
        app = create_app(engine, ServeConfig(**defaults | settings))
        async with TestClient(TestServer(app)) as client:
            if engine.warm_up_error is None:
                await app[WORKER].warm.wait()
            yield client

    return started


@pytest.fixture
async def client(start: Start) -> AsyncIterator[TestClient]:
    async with start() as client:
        yield client


@pytest.fixture
async def sdk(client: TestClient) -> AsyncIterator[openai.AsyncOpenAI]:
    """The official client, without its own retries."""
    base = str(client.make_url("/v1"))
    async with openai.AsyncOpenAI(base_url=base, api_key="not-used", max_retries=0) as sdk:
        yield sdk


@pytest.fixture
def ask() -> Ask:
    """The body of a chat request that says one thing."""

    def body(said: str = "hi", **fields: Any) -> dict[str, Any]:
        return {"model": "demo", "messages": [{"role": "user", "content": said}], **fields}

    return body


@pytest.fixture
def eventually() -> Callable[..., Any]:
    """Waits until a condition holds."""

    async def wait(condition: Callable[[], bool], patience: float = 5.0) -> None:
        deadline = time.monotonic() + patience
        while not condition():
            assert time.monotonic() < deadline, "it never happened"
            await asyncio.sleep(0.005)

    return wait
