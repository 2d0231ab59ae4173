"""Function calls as the chat format writes them, as grammar rules made from JSON schemas.

    call:get_weather{city:<|"|>Oslo<|"|>,days:3,units:[<|"|>celsius<|"|>]}

Keys are bare and in the alphabet's order, as the chat template sorts them, and strings stand between special tokens.
What a schema says of types, enums, constants, items, properties and what is required is kept; bounds, patterns and
lengths are not. Where a schema says nothing that is understood, any value may stand.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from dgemma_jax.prompt.schema_limits import at

_MOST_RULES = 2_500
"""Of all functions together. Rules that end in one another are a chain, and one of 3,000 is too much for the stack of
llguidance 1.9 (8 MiB)."""
_NAME = re.compile(r"""[^\s:,{}\[\]"'<>](?:[^\n:,{}\[\]"'<>]*[^\s:,{}\[\]"'<>])?""")
_SHARED = {
    "quoted": 'quoted: <|"|> TEXT <|"|>',
    "integer": "integer: /-?(0|[1-9][0-9]{0,17})/",
    "number": r"number: /-?(0|[1-9][0-9]{0,17})(\.[0-9]{1,17})?([eE][+-]?[0-9]{1,3})?/",
    "boolean": 'boolean: "true" | "false"',
    "null": 'null: "null"',
    "bare_key": r"bare_key: /[\w.$-]{1,64}/",
    "any_list": 'any_list: "[" (any ("," any)*)? "]"',
    "any_object": 'any_object: "{" (bare_key ":" any ("," bare_key ":" any)*)? "}"',
    "any": "any: quoted | number | boolean | null | any_list | any_object",
}
_TYPES = {
    "string": "quoted",
    "integer": "integer",
    "number": "number",
    "boolean": "boolean",
    "null": "null",
    "array": "any_list",
    "object": "any_object",
}


class CallRules:
    """Collects rules; `lines` are all of them.

    `call` raises ValueError for a schema that takes too many, or that points to what is not there.
    """

    def __init__(self) -> None:
        self._rules: list[str] = []
        self._named: dict[str, str] = {}
        self._root: Mapping[str, Any] = {}

    @property
    def lines(self) -> list[str]:
        """The rules, one a line."""
        return [*self._rules, *_SHARED.values()]

    def call(self, name: str, parameters: Mapping[str, Any]) -> str:
        """The name of the rule for a call of a function whose arguments fit `parameters`, an object's JSON schema.

        Empty `parameters` are those of a function without arguments.
        """
        self._root, self._named = parameters, {}
        arguments = self._object(self._resolved(parameters)) if parameters else self._add('"{}"')
        return self._add(f"{json.dumps(f'call:{name}')} {arguments}")

    def _add(self, body: str) -> str:
        if len(self._rules) >= _MOST_RULES:
            raise ValueError(f"the schemas take more than {_MOST_RULES} grammar rules")
        name = f"rule_{len(self._rules)}"
        self._rules.append(f"{name}: {body}")
        return name

    def _value(self, schema: Any) -> str:
        """What may stand for a value of the schema: the name of a rule."""
        if not isinstance(schema, Mapping):
            return "any"
        if "$ref" in schema:
            return self._referred(schema["$ref"])
        if "enum" in schema or "const" in schema:
            values = _list(schema, "enum") if "enum" in schema else [schema["const"]]
            return self._add(" | ".join(_literal(value) for value in values))
        for union in ("anyOf", "oneOf"):
            if options := _list(schema, union):
                return self._add(" | ".join(self._value(one) for one in options))
        types = schema.get("type")
        named = list(types) if isinstance(types, list) else [types]
        kinds = [self._typed(one, schema) for one in named]
        if schema.get("nullable") is True:
            kinds.append("null")
        return kinds[0] if len(kinds) == 1 else self._add(" | ".join(kinds))

    def _typed(self, kind: Any, schema: Mapping[str, Any]) -> str:
        if kind == "array" and isinstance(schema.get("items"), Mapping):
            item = self._value(schema["items"])
            return self._add(f'"[" ({item} ("," {item})*)? "]"')
        if isinstance(schema.get("properties"), Mapping) and kind in ("object", None):
            return self._object(schema)
        return _TYPES.get(kind, "any") if isinstance(kind, str) else "any"

    def _object(self, schema: Mapping[str, Any]) -> str:
        """Its properties with commas between those that are there; where it says nothing of them, any object."""
        if "properties" not in schema and schema.get("additionalProperties") is not False:
            return "any_object"
        properties, listed = schema.get("properties", {}), _list(schema, "required")
        required = {name for name in listed if isinstance(name, str)}
        if not isinstance(properties, Mapping):
            raise ValueError(f"`properties` must be an object, found {json.dumps(properties)[:40]}")
        if len(properties) > _MOST_RULES:
            raise ValueError(f"the schemas take more than {_MOST_RULES} grammar rules")
        names = sorted(properties, key=str.lower)
        begins = next((place for place, name in enumerate(names) if name in required), len(names))
        first = after = '""'  # what may follow before any property was written, and after one
        for place, name in reversed(list(enumerate(names))):
            if not _NAME.fullmatch(name):
                raise ValueError(f"an argument named {name!r} cannot be written in a call: its name stands bare")
            field = f"{json.dumps(name + ':')} {self._value(properties[name])} {after}"
            if place <= begins:  # behind one that is required there always was one
                first = self._add(field if name in required else f"{field} | {first}")
            if place:
                after = self._add(f'"," {field}' if name in required else f'"," {field} | {after}')
        return self._add(f'"{{" {first} "}}"')

    def _referred(self, pointer: Any) -> str:
        if not isinstance(pointer, str):
            raise ValueError(f"$ref must be text, found {json.dumps(pointer)[:40]}")
        if pointer not in self._named:
            number = len(self._rules)
            self._named[pointer] = self._add("any")  # its name, for what refers to it from inside
            self._rules[number] = f"rule_{number}: {self._value(at(self._root, pointer))}"
        return self._named[pointer]

    def _resolved(self, schema: Mapping[str, Any]) -> Mapping[str, Any]:
        """The schema of the arguments itself, behind references."""
        for _ in range(len(_TYPES)):
            if "$ref" not in schema:
                return schema
            schema = at(self._root, schema["$ref"])
        raise ValueError("the schema of the arguments points to itself")


def _list(schema: Mapping[str, Any], key: str) -> list[Any]:
    """What a key lists; nothing where it is not there."""
    found = schema.get(key, [])
    if not isinstance(found, list):
        raise ValueError(f"`{key}` must be a list, found {json.dumps(found)[:40]}")
    return found


def _literal(value: Any) -> str:
    """An expression for one value."""
    if isinstance(value, str):
        return f'<|"|> {json.dumps(value)} <|"|>' if value else '<|"|> <|"|>'
    if isinstance(value, Mapping):
        fields = [f"{json.dumps(key + ':')} {_literal(value[key])}" for key in sorted(value, key=str.lower)]
        return '"{" ' + ' "," '.join(fields) + ' "}"'
    if isinstance(value, Sequence):
        return '"[" ' + ' "," '.join(map(_literal, value)) + ' "]"'
    return json.dumps(json.dumps(value))
