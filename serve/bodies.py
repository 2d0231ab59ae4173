"""HTTP bodies: bytes to a typed request, and a typed answer to bytes.

A field of a request is one of four things: a field of its type (done), a harmless name (taken, without effect on the
reply), a neutral name (known, not done: only values that change nothing pass), or unknown. The last two are answered
400 with `param` naming the field. A field that is null counts as absent, unless it must be there.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Collection, Coroutine, Mapping
from typing import Any, TypeVar

import msgspec
from aiohttp import web

from serve.errors import InvalidRequestError, RequestTimeoutError, UnavailableError, UnsupportedMediaTypeError
from serve.json_size import json_tokens
from serve.unreadable import unreadable

T = TypeVar("T", bound=msgspec.Struct)
V = TypeVar("V")
Neutral = Mapping[str, tuple[Any, ...]]

STOPPING = web.AppKey("stopping", asyncio.Event)
"""Set once no more requests are taken: one whose body is still on its way is answered at once."""

STOPPED = "The server is stopping."

BODY_SECONDS = 300.0
"""How long a body may take to arrive: the largest one over a slow line. A client that never ends holds no place."""

_MOST_TOKENS = 1_000_000
"""Strings, brackets and commas of one body: values take far more memory than their text does."""

_VALIDATION = re.compile(r"^(?P<what>.*?)(?: - at `\$\.?(?P<path>.*)`)?$", re.DOTALL)
_FIELD = re.compile(r"field `(.*)`", re.DOTALL)
_CODES = {"Object contains unknown field": "unknown_parameter", "Object missing": "missing_required_parameter"}


async def read(request: web.Request) -> bytes:
    """The body of a request that may say it is JSON, and nothing else."""
    kind = request.content_type
    if "Content-Type" in request.headers and kind != "application/json" and not kind.endswith("+json"):
        raise UnsupportedMediaTypeError(f"The body must be JSON (Content-Type: application/json), found {kind}.")
    if (request.content_length or 0) > request.client_max_size:
        raise web.HTTPRequestEntityTooLarge(request.client_max_size, request.content_length or 0)
    return await _arrived(request)


async def _arrived(request: web.Request) -> bytes:
    """The whole body. Raises ApiError where it takes too long, or the server stops first."""
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await before_stop(request.app, _whole(request))
    except TimeoutError:
        raise RequestTimeoutError(f"The request body did not arrive within {BODY_SECONDS:g} s") from None


async def _whole(request: web.Request) -> bytes:
    """As `request.read()`, which would keep the body as long as the request is there."""
    parts, size = [], 0
    async for part in request.content.iter_any():
        parts.append(part)
        size += len(part)
        if 0 < request.client_max_size < size:
            raise web.HTTPRequestEntityTooLarge(request.client_max_size, size)
    return b"".join(parts)


async def before_stop(app: web.Application, work: Coroutine[Any, Any, V]) -> V:
    """The result of work that holds no place. Raises UnavailableError where the server stops first."""
    working = asyncio.ensure_future(work)
    stopping = asyncio.ensure_future(app[STOPPING].wait())
    try:
        await asyncio.wait((working, stopping), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise UnavailableError(STOPPED)
    finally:
        working.cancel()
        stopping.cancel()


def answer(body: msgspec.Struct, status: int = 200) -> web.Response:
    """A body of ours as the answer."""
    return web.Response(body=msgspec.json.encode(body), status=status, content_type="application/json")


def decode(body: bytes, kind: type[T], *, harmless: Collection[str] = (), neutral: Neutral | None = None) -> T:
    """Reads a request body.

    Raises:
        InvalidRequestError: the body is not JSON, or a field has the wrong type, is unknown, or asks for what
            is not done.
    """
    return convert(json_object(body), kind, harmless=harmless, neutral=neutral)


def convert(
    found: Mapping[str, Any], kind: type[T], *, harmless: Collection[str] = (), neutral: Neutral | None = None
) -> T:
    """A JSON object as the type; as `decode`."""
    neutral = neutral or {}
    required = {field.name for field in msgspec.structs.fields(kind) if field.required}
    fields = {
        name: value for name, value in found.items() if name not in harmless and (value is not None or name in required)
    }
    for name in [name for name in fields if name in neutral]:
        value = fields.pop(name)
        if not any(_same(value, nothing) for nothing in neutral[name]):
            raise unsupported(f"`{name}`", name)
    try:
        return msgspec.convert(fields, kind)
    except msgspec.ValidationError as error:
        raise _invalid(str(error)) from None


def unsupported(what: str, param: str) -> InvalidRequestError:
    """The refusal of something that is known, but not done by this server yet."""
    return InvalidRequestError(
        f"{what} is not supported by this server yet.", param=param, code="unsupported_parameter"
    )


def json_object(body: bytes) -> dict[str, Any]:
    """The body as a JSON object. Raises InvalidRequestError where it is none."""
    if json_tokens(body, _MOST_TOKENS) > _MOST_TOKENS:
        raise InvalidRequestError(
            f"The request body holds too much: wanted at most {_MOST_TOKENS} strings, brackets and commas, found more",
            code="request_too_large",
        )
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise unreadable(body) or InvalidRequestError(
            f"The request body is not valid JSON: {error}", code="invalid_json"
        ) from None
    except RecursionError:
        raise InvalidRequestError("The request body is nested too deeply", code="invalid_json") from None
    if not isinstance(value, dict):
        raise InvalidRequestError("The request body must be a JSON object", code="invalid_json")
    return value


def _same(value: Any, neutral: Any) -> bool:
    """Equal as JSON, where true is not 1."""
    return value == neutral and isinstance(value, bool) == isinstance(neutral, bool)


def _invalid(message: str) -> InvalidRequestError:
    """msgspec's message with its path (`$.messages[0].content`) and field name as `param`."""
    what, path = _VALIDATION.match(message).group("what", "path")  # type: ignore[union-attr]  # it matches anything
    field = _FIELD.search(what)
    param = path or None
    if field:
        param = f"{path}.{field[1]}" if path else field[1]
    code = next((code for start, code in _CODES.items() if what.startswith(start)), "invalid_value")
    return InvalidRequestError(what if param is None else f"{what} - at `{param}`", param=param, code=code)
