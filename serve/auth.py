"""API keys: who may ask. Without any key configured everybody may.

The health endpoints stay open for whatever watches the server, and the chat page, which asks for a key itself.
Everything else wants the key, metrics and the OpenAPI document too: Prometheus sends one (`authorization:
{credentials: ...}`).
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Sequence

from aiohttp import web
from aiohttp.typedefs import Middleware

from serve.access import PROBES, Handler
from serve.errors import ApiError
from serve.ui import PATHS


class UnauthorizedError(ApiError):
    """No key, or none of ours."""

    status, code = 401, "invalid_api_key"
    headers: Mapping[str, str] = {"WWW-Authenticate": "Bearer"}


def require_key(keys: Sequence[str]) -> Middleware:
    """The middleware that lets requests with one of `keys` through, and probes."""
    wanted = [_digest(key) for key in keys]

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path not in PROBES | PATHS:
            _check(request.headers.get("Authorization", ""), wanted)
        return await handler(request)

    return check


def _check(header: str, wanted: Sequence[bytes]) -> None:
    scheme, _, key = header.partition(" ")
    if scheme.lower() != "bearer" or not (key := key.strip()):
        raise UnauthorizedError("This server asks for an API key: send it as `Authorization: Bearer KEY`.")
    given = _digest(key)
    # Digests of one length, and all of them: how long it takes tells nothing about any key.
    if not any([hmac.compare_digest(given, digest) for digest in wanted]):
        raise UnauthorizedError("The API key is not one of this server's.")


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
