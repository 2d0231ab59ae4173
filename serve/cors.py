"""Cross-origin requests: which web pages may call this server from a browser. None, unless `--cors-origin` names them.

A browser asks first (a preflight: OPTIONS without credentials) and shows a page only answers that name its origin.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from aiohttp import web
from aiohttp.typedefs import Middleware

from serve.access import Handler

_PREFLIGHT = {"Access-Control-Allow-Methods": "GET, HEAD, POST", "Access-Control-Max-Age": "600"}
_EXPOSED = "X-Request-Id, Retry-After"


def answer_preflights(origins: Sequence[str]) -> Middleware:
    """The middleware that answers the preflights of these pages; it comes before keys are asked for."""

    @web.middleware
    async def answer(request: web.Request, handler: Handler) -> web.StreamResponse:
        asked = request.headers.get("Access-Control-Request-Method")
        if request.method != "OPTIONS" or asked is None or _granted(request, origins) is None:
            return await handler(request)
        wanted = request.headers.get("Access-Control-Request-Headers", "")  # SDKs have many of their own
        return web.Response(status=204, headers=_PREFLIGHT | {"Access-Control-Allow-Headers": wanted})

    return answer


def grant(origins: Sequence[str]) -> Callable[[web.Request, web.StreamResponse], Awaitable[None]]:
    """The signal handler that names the page's origin in every answer to it, errors and streams included."""

    async def sign(request: web.Request, response: web.StreamResponse) -> None:
        if (origin := _granted(request, origins)) is not None:
            response.headers["Access-Control-Allow-Origin"] = origin
            response.headers["Access-Control-Expose-Headers"] = _EXPOSED
        if origins != ("*",):
            response.headers.add("Vary", "Origin")  # a cache must not give one page's answer to another

    return sign


def _granted(request: web.Request, origins: Sequence[str]) -> str | None:
    """What an answer says about who may read it: the page itself, or every page."""
    origin = request.headers.get("Origin")
    if origin is None or "*" in origins:
        return None if origin is None else "*"
    return origin if origin.lower() in origins else None
