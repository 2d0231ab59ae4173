"""The internet as a test sees it: a server on loopback, and names that resolve to whatever the test says."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.test_utils import TestServer

from serve.errors import InvalidRequestError
from serve.media_fetch import MediaFetcher
from serve.media_limits import MediaLimits

PICTURE = bytes(range(256)) * 8
PARAM = "messages[0].content[1].image_url"
HERE: dict[str, Any] = {"allow_private": True}


class FakeResolver(AbstractResolver):
    """Every name has the next of the given addresses, over and over; remembers what was asked."""

    def __init__(self, *answers: list[str] | Exception) -> None:
        self._answers = answers or (["127.0.0.1"],)
        self.asked: list[str] = []

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET) -> Any:
        answer = self._answers[len(self.asked) % len(self._answers)]
        self.asked.append(host)
        if isinstance(answer, Exception):
            raise answer
        families = [socket.AF_INET6 if ":" in address else socket.AF_INET for address in answer]
        return [
            ResolveResult(hostname=host, host=address, port=port, family=family, proto=0, flags=0)
            for address, family in zip(answer, families, strict=True)
        ]

    async def close(self) -> None:
        pass


class Upstream:
    """A server on loopback that answers every path as the test says, and keeps the requests."""

    def __init__(self) -> None:
        self.requests: list[web.Request] = []
        self.answers: dict[str, Callable[[web.Request], Any]] = {}
        self._app = web.Application()
        self._app.router.add_get("/{name:.*}", self._answer)
        self.server = TestServer(self._app)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        answer = self.answers.get(request.path, lambda _: web.Response(body=PICTURE, content_type="image/png"))
        found = answer(request)
        return await found if asyncio.iscoroutine(found) else found

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.server.port}{path}"

    def redirect(self, path: str, location: str, status: int = 302) -> None:
        self.answers[path] = lambda _: web.Response(status=status, headers={"Location": location})


async def fetch(url: str, kind: Any = "image", resolver: AbstractResolver | None = None, **limits: Any) -> bytes:
    fetcher = MediaFetcher(MediaLimits(**limits), resolver)
    try:
        return await fetcher.fetch(url, kind, PARAM)
    finally:
        await fetcher.close()


async def refusal(url: str, kind: Any = "image", resolver: AbstractResolver | None = None, **limits: Any) -> str:
    """Why a URL is refused, as the client reads it."""
    with pytest.raises(InvalidRequestError) as caught:
        await fetch(url, kind, resolver, **limits)
    error = caught.value
    assert (error.status, error.param, error.code) == (400, PARAM, f"invalid_{kind}_url")
    start = f"The {kind} URL cannot be used: "
    assert str(error).startswith(start)
    return str(error).removeprefix(start)
