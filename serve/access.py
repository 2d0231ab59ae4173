"""Request ids, and one log line per request. Prompts and replies are never logged.

The line is JSON: id, method, path, status, ms, and what the handler noted in `request[LOG]` (token counts, the
code of an error). Status 499 means that the client went away first. What is no HTTP gets a line too, without its bytes.
"""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from aiohttp import HttpVersion11, web
from aiohttp.http import HttpProcessingError

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
ID = web.RequestKey("id", str)
LOG = web.RequestKey("log", dict[str, Any])

logger = logging.getLogger("serve.access")
_ID = re.compile(r"[\x21-\x7e]{1,128}")
_CLIENT_GONE = 499
_CONTINUE = "100-continue"
PROBES = frozenset({"/health", "/v1/health/live", "/v1/health/ready"})
"""What says whether the server lives and is ready."""
_WATCHED = PROBES | {"/metrics", "/v1/metrics"}
"""Asked every few seconds by whatever watches the server: logged at debug level only."""


@web.middleware
async def log_requests(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Takes the client's `x-request-id` where it is a sane one, makes one otherwise, and logs how it went."""
    request[ID] = _id_of(request)
    request[LOG] = {}
    start, status = time.monotonic(), _CLIENT_GONE
    try:
        response = await handler(request)
        status = response.status
        return response
    finally:
        level = logging.DEBUG if request.path in _WATCHED else logging.INFO
        if logger.isEnabledFor(level):
            line = {"id": request[ID], "method": request.method, "path": request.path, "status": status}
            line |= {"ms": round(1000 * (time.monotonic() - start), 1)} | request[LOG]
            logger.log(level, "%s", msgspec.json.encode(line).decode())


async def sign(request: web.Request, response: web.StreamResponse) -> None:
    """Every answer carries the request's id; those that aiohttp gives before any middleware have none yet."""
    response.headers["x-request-id"] = request[ID] if ID in request else _id_of(request)


async def expect(request: web.Request) -> None:
    """Asks for the body of a request that waits to be asked. Any other expectation is left to the middlewares."""
    if request.version >= HttpVersion11 and _expectation(request) == _CONTINUE:
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # nothing of the answer itself is sent yet


@web.middleware
async def require_known_expectation(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuses an `Expect` header that asks for anything but to go on."""
    if request.version >= HttpVersion11 and _expectation(request) not in ("", _CONTINUE):
        raise web.HTTPExpectationFailed
    return await handler(request)


def _expectation(request: web.Request) -> str:
    return request.headers.get("Expect", "").strip().lower()


def _id_of(request: web.Request) -> str:
    given = request.headers.get("x-request-id", "")
    return given if _ID.fullmatch(given) else f"req-{uuid.uuid4().hex}"


class _NoHttp(logging.Filter):
    """Turns aiohttp's record of a request that it cannot read, with what was sent and a traceback, into one line."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, web.RequestPayloadError):  # a body that broke off: its request has its line
            return False
        if not isinstance(error, HttpProcessingError):
            return True
        logger.info("%s", msgspec.json.encode({"status": error.code, "error": "invalid_http"}).decode())
        return False


def log_what_is_no_http() -> None:
    """From now on. A request that cannot be read is answered by aiohttp itself: it reaches no middleware."""
    logging.getLogger("aiohttp.server").addFilter(_NoHttp())
