"""JSON schemas in the form that chat templates print: one type for each, and every reference written out.

{"$ref": "#/$defs/City"}          what it names; a recursive type ends as a plain object
{"type": ["string", "null"]}      {"type": "string", "nullable": true}, as for alternatives of which one is null
{"anyOf": [{"const": "a"}, ...]}  {"enum": ["a", ...], "type": "string"}; of others the first that is no value
{"allOf": [A, B]}                 A and B in one
{"enum": [1, 2]}                  {"enum": [1, 2], "type": "integer"}: the type is filled in where it is certain
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

_MAX_DEPTH = 64
_DEFINITION = re.compile(r"#/(?:\$defs|definitions)/(.+)")
_TYPES = {str: "string", bool: "boolean", int: "integer", float: "number"}


class SchemaError(ValueError):
    """A schema that writes out to too many."""


def normalise_schema(schema: Mapping[str, Any], left: Iterator[Any]) -> dict[str, Any]:
    """The schema of a tool's parameters; `left` has an item for every schema that may still be written.

    Raises `SchemaError` when it has no more.
    """
    named = {**_mapping(schema.get("definitions")), **_mapping(schema.get("$defs"))}
    return _normalise(schema, _Definitions(named, left), ())


@dataclasses.dataclass(frozen=True)
class _Definitions:
    """What references may name, and a tick for every schema that may still be written."""

    named: Mapping[str, Any]
    left: Iterator[Any]

    def tick(self) -> None:
        if next(self.left, None) is None:
            raise SchemaError("the schemas of all tools write out to more than can be read")


def _normalise(schema: Any, definitions: _Definitions, path: tuple[str, ...]) -> dict[str, Any]:
    """`path` holds the names of the references being resolved."""
    if not isinstance(schema, Mapping) or len(path) > _MAX_DEPTH:
        return {}
    definitions.tick()
    result = _resolve(schema, definitions, path)
    path = (*path, str(schema.get("$ref", "")))
    result = _merge_all(result, definitions, path)
    result = _merge_optional(result, definitions, path)
    if isinstance(properties := result.get("properties"), Mapping):
        result["properties"] = {name: _normalise(value, definitions, path) for name, value in properties.items()}
    if isinstance(items := result.get("items"), Mapping):
        result["items"] = _normalise(items, definitions, path)
    if "const" in result:
        result.setdefault("enum", [result["const"]])
    if "type" not in result:
        result |= _certain_type(result)
    return result


def _resolve(schema: Mapping[str, Any], definitions: _Definitions, path: tuple[str, ...]) -> dict[str, Any]:
    result = {key: value for key, value in schema.items() if key not in ("$ref", "$defs", "definitions")}
    reference = schema.get("$ref")
    if reference is None:
        return result
    named = _DEFINITION.fullmatch(str(reference))
    target = definitions.named.get(named[1]) if named else None
    if not isinstance(target, Mapping) or reference in path:
        return {"type": "object", **result}
    return {**target, **result}


def _merge_all(schema: dict[str, Any], definitions: _Definitions, path: tuple[str, ...]) -> dict[str, Any]:
    """What all of several schemas say, as one: a later one adds to, or replaces, what an earlier one says."""
    parts = schema.get("allOf")
    if not isinstance(parts, list):
        return schema
    merged: dict[str, Any] = {}
    for part in (*(_normalise(part, definitions, path) for part in parts), schema):
        properties = {**_mapping(merged.get("properties")), **_mapping(part.get("properties"))}
        required = [*_names(merged.get("required")), *_names(part.get("required"))]
        merged = {**merged, **{key: value for key, value in part.items() if key != "allOf"}}
        merged |= {"properties": properties} if properties else {}
        merged |= {"required": list(dict.fromkeys(required))} if required else {}
    return merged


def _merge_optional(schema: dict[str, Any], definitions: _Definitions, path: tuple[str, ...]) -> dict[str, Any]:
    """One type and `nullable` in place of a list of types, or of alternatives of which one is null."""
    if isinstance(kinds := schema.get("type"), list):
        named = [kind for kind in kinds if kind != "null"]
        schema = {**schema, "type": named[0] if named else "null"}
        return {**schema, "nullable": True} if len(named) < len(kinds) else schema
    key = next((name for name in ("anyOf", "oneOf") if isinstance(schema.get(name), list)), None)
    if key is None or "type" in schema:
        return schema
    options = [option for option in schema[key] if isinstance(option, Mapping)]
    named = [option for option in options if option.get("type") != "null"]
    rest = {name: value for name, value in schema.items() if name != key}
    if named:
        values = [_values(_resolve(option, definitions, path)) for option in named]
        wider = next((option for option, listed in zip(named, values, strict=True) if not listed), None)
        choice = {"enum": [value for listed in values for value in listed]} if wider is None else wider
        rest = {**_normalise(choice, definitions, path), **rest}
    return {**rest, "nullable": True} if len(named) < len(options) else rest


def _values(schema: Mapping[str, Any]) -> list[Any]:
    """The values that a schema lists; none where it allows others."""
    if "const" in schema:
        return [schema["const"]]
    return listed if isinstance(listed := schema.get("enum"), list) else []


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _names(value: Any) -> list[str]:
    return [name for name in value if isinstance(name, str)] if isinstance(value, list) else []


def _certain_type(schema: Mapping[str, Any]) -> dict[str, Any]:
    """`type`, and `nullable` where one of the values is null."""
    if "properties" in schema:
        return {"type": "object"}
    if "items" in schema:
        return {"type": "array"}
    choices = schema.get("enum")
    kinds = {type(choice) for choice in choices} if isinstance(choices, list) else set()
    nullable = {"nullable": True} if type(None) in kinds else {}
    if len(kinds := kinds - {type(None)}) == 1 and (name := _TYPES.get(kinds.pop())):
        return {"type": name} | nullable
    return {}
