"""`GET /openapi.json`: the server's interface, made from the types that read requests and write answers.

an Operation per route --> paths         msgspec types --> components/schemas
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
from aiohttp import web

from serve.access import Handler
from serve.bodies import Neutral
from serve.responses import ErrorResponse

_HARMLESS_SCHEMA = {"description": "Taken without effect."}
_JSON = "application/json"
_REF = "#/components/schemas/{name}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Operation:
    """What one route takes and gives; a stream is of `chunk`s."""

    summary: str
    request: tuple[type[msgspec.Struct], ...] = ()
    harmless: frozenset[str] = frozenset()
    neutral: Neutral = dataclasses.field(default_factory=dict)
    answer: type[msgspec.Struct] | None = None
    chunk: type[msgspec.Struct] | None = None
    media_type: str = _JSON
    not_ready: type[msgspec.Struct] | None = None
    """The body of a 503 that is no error."""
    refusals: tuple[int, ...] = ()
    is_open: bool = False
    """No key is asked for."""
    redirects: bool = False


@dataclasses.dataclass(frozen=True)
class Route:
    """One endpoint."""

    method: str
    path: str
    handler: Handler
    operation: Operation


def document(routes: Sequence[Route], release: str, *, keys: bool) -> bytes:
    """The OpenAPI document of these routes, as JSON. `keys`: API keys are asked for."""
    operations = [route.operation for route in routes]
    kinds: list[type[msgspec.Struct]] = [ErrorResponse]
    for operation in operations:
        kinds += [kind for kind in (*operation.request, operation.answer, operation.chunk) if kind]
    _, schemas = msgspec.json.schema_components(list(dict.fromkeys(kinds)), ref_template=_REF)
    for operation in operations:
        for kind in operation.request:
            _admit_more(schemas[kind.__name__], operation.harmless, operation.neutral)
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        described = _described(route.path, route.operation, keys=keys)
        paths.setdefault(_template(route.path), {})[route.method.lower()] = described
    components: dict[str, Any] = {"schemas": schemas}
    if keys:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    info = {"title": "DGemma", "version": release, "description": "DiffusionGemma behind an OpenAI-compatible API."}
    return msgspec.json.encode({"openapi": "3.1.0", "info": info, "paths": paths, "components": components})


def _described(path: str, operation: Operation, *, keys: bool) -> dict[str, Any]:
    asks_key = keys and not operation.is_open
    described: dict[str, Any] = {"summary": operation.summary, "responses": _responses(operation, asks_key)}
    if names := re.findall(r"\{(\w+)", path):
        schema = {"type": "string", "minLength": 1}
        described["parameters"] = [{"name": name, "in": "path", "required": True, "schema": schema} for name in names]
    if operation.request:
        kinds = [_ref(kind) for kind in operation.request]
        body = {_JSON: {"schema": kinds[0] if len(kinds) == 1 else {"anyOf": kinds}}}
        described["requestBody"] = {"required": True, "content": body}
    if asks_key:
        described["security"] = [{"key": []}]
    return described


def _responses(operation: Operation, asks_key: bool) -> dict[str, Any]:
    answers = {operation.media_type: _ref(operation.answer) if operation.answer else {}}
    if operation.chunk:
        answers["text/event-stream"] = _event(operation.chunk)
    statuses = [*operation.refusals, *([401] if asks_key else [])]
    responses: dict[str, Any] = {"200": _content(answers, "Done.")}
    if operation.redirects:
        responses = {"302": {"description": "Elsewhere.", "headers": {"Location": {"schema": {"type": "string"}}}}}
    responses |= {str(status): _content({_JSON: _ref(ErrorResponse)}, "Refused.") for status in sorted(statuses)}
    if operation.not_ready:
        responses["503"] = _content({_JSON: _ref(operation.not_ready)}, "Not ready.")
    return responses


def _admit_more(schema: dict[str, Any], harmless: Iterable[str], neutral: Neutral) -> None:
    """Adds what a request may hold besides the fields of its type: null for absent, harmless and neutral fields."""
    properties = schema["properties"]
    for name in set(properties) - set(schema.get("required", ())):
        properties[name] = _or_null(properties[name])
    properties |= {name: _HARMLESS_SCHEMA for name in sorted(harmless)}
    properties |= {name: {"enum": [*values, None]} for name, values in sorted(neutral.items())}


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    null = {"type": "null"}
    if null in schema.get("anyOf", ()):
        return schema
    kept = {name: value for name, value in schema.items() if name in ("default", "description")}
    return kept | {"anyOf": [{name: value for name, value in schema.items() if name not in kept}, null]}


def _content(answers: Mapping[str, dict[str, Any]], description: str) -> dict[str, Any]:
    content = {kind: {"schema": schema} if schema else {} for kind, schema in answers.items()}
    return {"description": description, "content": content}


def _ref(kind: type[msgspec.Struct]) -> dict[str, Any]:
    return {"$ref": _REF.format(name=kind.__name__)}


def _event(chunk: type[msgspec.Struct]) -> dict[str, Any]:
    """One event of a stream: its data is the text of a chunk or of an error, or the mark of the end."""
    texts = [
        {"type": "string", "contentMediaType": _JSON, "contentSchema": _ref(kind)} for kind in (chunk, ErrorResponse)
    ]
    return {"type": "object", "required": ["data"], "properties": {"data": {"anyOf": [*texts, {"const": "[DONE]"}]}}}


def _template(path: str) -> str:
    """aiohttp's path without the patterns of its variables."""
    return re.sub(r"\{(\w+)[^}]*\}", r"{\1}", path)


DOCUMENT = web.AppKey("openapi", bytes)


async def openapi(request: web.Request) -> web.Response:
    """`GET /openapi.json`"""
    return web.Response(body=request.app[DOCUMENT], content_type=_JSON)
