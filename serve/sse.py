"""Server-sent events, as OpenAI's clients read them: `data: {json}` frames, then `data: [DONE]`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import msgspec
from aiohttp import web

from serve.errors import ApiError, explain

_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",  # nginx would hold frames back
}
_DONE = b"data: [DONE]\n\n"
WRITE_SECONDS = 120.0
"""How long a client may take nothing of what is sent: a connection that is only kept open holds what others need."""


@contextlib.asynccontextmanager
async def event_stream(request: web.Request) -> AsyncIterator[EventStream]:
    """An open stream, closed behind the last frame. What fails inside is its last frame, but for a lost connection."""
    stream = await EventStream.open(request)
    try:
        yield stream
    except ConnectionError:
        raise
    except Exception as caught:
        await stream.fail(explain(caught, request))
    await stream.close()


class EventStream:
    """An open stream of frames. From here on an error can only be a frame: the status is sent."""

    def __init__(self, response: web.StreamResponse, transport: asyncio.Transport | None) -> None:
        self.response = response
        self._transport = transport

    @classmethod
    async def open(cls, request: web.Request) -> EventStream:
        """Sends status 200 and the headers."""
        response = web.StreamResponse(headers=_HEADERS)
        await response.prepare(request)
        return cls(response, request.transport)

    async def send(self, message: Any) -> None:
        """One frame. Raises ConnectionError when the client is gone."""
        await self._write(b"data: " + msgspec.json.encode(message) + b"\n\n")

    async def fail(self, error: ApiError) -> None:
        """An error frame; the official clients raise it."""
        await self._write(b"data: " + error.body() + b"\n\n")

    async def close(self) -> None:
        """The end mark; a stream without it broke off."""
        await self._write(_DONE)
        await self.response.write_eof()

    async def _write(self, frame: bytes) -> None:
        try:
            async with asyncio.timeout(WRITE_SECONDS):
                await self.response.write(frame)
        except TimeoutError:
            if self._transport is not None:
                self._transport.abort()
            raise ConnectionResetError(f"the client read nothing for {WRITE_SECONDS:g} s") from None
