"""Bounds on JSON schemas that come from outside: beyond them llguidance runs out of stack, or computes for minutes.

Measured with llguidance 1.9: its stack of 8 MiB ends between 500 and 1,000 objects that refer to one another in a chain
(1,500 and 3,000 levels as counted here), and a `multipleOf` of ten million takes more than a minute.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, NamedTuple

MOST_LEVELS = 1200
"""Of nesting: those of the schema and of everything that it refers to, added up; more than a chain of them can have."""
MOST_PARTS = 100_000
"""Values in the schema and in everything that it refers to: they are looked at one by one."""
MOST_DIVISOR = 100_000


class _Survey(NamedTuple):
    levels: int
    parts: int
    references: list[str]


def check(schema: Mapping[str, Any]) -> None:
    """Raises ValueError for a schema beyond the bounds; the text says which one."""
    # Definitions count where something refers to them.
    total = _survey({key: part for key, part in schema.items() if key not in ("$defs", "definitions")})
    seen: set[str] = set()
    levels, parts, waiting = total.levels, total.parts, list(total.references)
    while waiting and levels <= MOST_LEVELS and parts <= MOST_PARTS:
        if (pointer := waiting.pop()) not in seen:
            seen.add(pointer)
            found = _survey(at(schema, pointer))
            levels, parts = levels + found.levels, parts + found.parts
            waiting += found.references
    if levels > MOST_LEVELS:
        raise ValueError(f"the schema and all that it refers to are nested more than {MOST_LEVELS} levels deep")
    if parts > MOST_PARTS:
        raise ValueError(f"the schema and all that it refers to hold more than {MOST_PARTS} values")


def at(schema: Mapping[str, Any], pointer: Any) -> Any:
    """What a `$ref` within a schema points to. Raises ValueError where that is nothing."""
    if not isinstance(pointer, str) or not (pointer == "#" or pointer.startswith("#/")):
        raise ValueError(f"$ref must point into the schema itself, as #/$defs/name does; found {pointer!r}")
    found: Any = schema
    for step in pointer.split("/")[1:]:
        key = step.replace("~1", "/").replace("~0", "~")
        if not isinstance(found, Mapping) or key not in found:
            raise ValueError(f"$ref {pointer} points to nothing in the schema")
        found = found[key]
    return found


def _survey(schema: Any) -> _Survey:
    """How deep a schema is, how much is in it and what it refers to. Raises ValueError for a `multipleOf` too fine."""
    levels, parts, references, row = 0, 0, [], [schema]
    while row:
        levels, parts = levels + 1, parts + len(row)
        maps = [one for one in row if isinstance(one, Mapping)]
        references += [one["$ref"] for one in maps if isinstance(one.get("$ref"), str)]
        for one in maps:
            divisor = one.get("multipleOf")
            # A bool is an int here; llguidance refuses it.
            if type(divisor) in (int, float) and not _is_small(Decimal(str(divisor))):
                raise ValueError(f"`multipleOf` must be a number of at most {MOST_DIVISOR} steps, found {divisor}")
        row = [part for one in row for part in (one.values() if isinstance(one, Mapping) else _items(one))]
    return _Survey(levels, parts, references)


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _is_small(divisor: Decimal) -> bool:
    """Whether its digits without the point, from the first to the last that is not zero, are a small number."""
    if not divisor.is_finite():
        return False
    _, digits, exponent = divisor.normalize().as_tuple()
    return -6 <= int(exponent) <= 5 and int("".join(map(str, digits))) * 10 ** max(int(exponent), 0) <= MOST_DIVISOR
