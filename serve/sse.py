"""Server-sent events, as OpenAI's clients read them: `data: {json}` frames, then `data: [DONE]`."""

from __future__ import annotations

from typing import Any

import msgspec
from aiohttp import web

from serve.errors import ApiError

_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",  # nginx would hold frames back
}
_DONE = b"data: [DONE]\n\n"


class EventStream:
    """An open stream of frames. From here on an error can only be a frame: the status is sent."""

    def __init__(self, response: web.StreamResponse) -> None:
        self.response = response

    @classmethod
    async def open(cls, request: web.Request) -> EventStream:
        """Sends status 200 and the headers."""
        response = web.StreamResponse(headers=_HEADERS)
        await response.prepare(request)
        return cls(response)

    async def send(self, message: Any) -> None:
        """One frame. Raises ConnectionError when the client is gone."""
        await self.response.write(b"data: " + msgspec.json.encode(message) + b"\n\n")

    async def fail(self, error: ApiError) -> None:
        """An error frame; the official clients raise it."""
        await self.response.write(b"data: " + error.body() + b"\n\n")

    async def close(self) -> None:
        """The end mark; a stream without it broke off."""
        await self.response.write(_DONE)
        await self.response.write_eof()
