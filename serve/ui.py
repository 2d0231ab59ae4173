"""`GET /ui`: a page to chat with the model in a browser, and to watch its canvases being denoised.

One file without anything from elsewhere, which speaks to this server's own API like any other client.
"""

from __future__ import annotations

from pathlib import Path

from aiohttp import web

PATHS = frozenset({"/", "/ui"})

_PAGE = Path(__file__).with_name("ui.html")
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "connect-src 'self'",
        "img-src data:",
        "script-src 'unsafe-inline'",
        "style-src 'unsafe-inline'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
"""What the page may do: run its own script, and ask the server that it came from."""


async def page(request: web.Request) -> web.Response:
    """The page. It needs no key; what it asks for does."""
    headers = {"Content-Security-Policy": _POLICY, "Cache-Control": "no-cache"}
    return web.Response(text=_PAGE.read_text(encoding="utf-8"), content_type="text/html", headers=headers)


async def front(request: web.Request) -> web.Response:
    """`GET /`: leads to the page."""
    return web.Response(status=302, headers={"Location": "ui"})
