"""Bounds on JSON schemas that come from outside: beyond them llguidance runs out of stack, or computes for minutes.

Measured with llguidance 1.9: its stack of 8 MiB ends between 500 and 1,000 objects that refer to one another in a chain
(1,500 and 3,000 levels as counted here), and a `multipleOf` of ten million takes more than a minute.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

MOST_LEVELS = 1200
"""Of nesting: those of the schema and of everything that it refers to, added up; more than a chain of them can have."""
MOST_DIVISOR = 100_000


def check(schema: Mapping[str, Any]) -> None:
    """Raises ValueError for a schema beyond the bounds; the text says which one."""
    levels = _levels(schema)
    seen: set[str] = set()
    waiting = list(_references(schema))
    while waiting:
        pointer = waiting.pop()
        if pointer not in seen:
            seen.add(pointer)
            levels += _levels(found := at(schema, pointer))
            waiting += _references(found)
        if levels > MOST_LEVELS:
            raise ValueError(f"the schema and all that it refers to are nested more than {MOST_LEVELS} levels deep")
    _check_divisors(schema)


def at(schema: Mapping[str, Any], pointer: Any) -> Any:
    """What a `$ref` within a schema points to. Raises ValueError where that is nothing."""
    if not isinstance(pointer, str) or not pointer.startswith("#"):
        raise ValueError(f"$ref must point into the schema itself, as #/$defs/name does; found {pointer!r}")
    found: Any = schema
    for step in pointer.split("/")[1:]:
        key = step.replace("~1", "/").replace("~0", "~")
        if not isinstance(found, Mapping) or key not in found:
            raise ValueError(f"$ref {pointer} points to nothing in the schema")
        found = found[key]
    return found


def _parts(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return [part for key, part in value.items() if key not in ("$defs", "definitions")]
    return value if isinstance(value, list) else []


def _levels(value: Any) -> int:
    """How deeply a schema is nested, definitions aside: they count where something refers to them."""
    levels, row = 0, [value]
    while row:
        levels += 1
        row = [part for one in row for part in _parts(one)]
    return levels


def _references(value: Any) -> list[str]:
    found: list[str] = []
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, Mapping) and isinstance(one.get("$ref"), str):
            found.append(one["$ref"])
        waiting += _parts(one)
    return found


def _check_divisors(schema: Any) -> None:
    waiting = [schema]
    while waiting:
        one = waiting.pop()
        if isinstance(one, Mapping):
            divisor = one.get("multipleOf")
            if isinstance(divisor, int | float) and not _is_small(Decimal(str(divisor))):
                raise ValueError(f"`multipleOf` must be a number of at most {MOST_DIVISOR} steps, found {divisor}")
        waiting += list(one.values()) if isinstance(one, Mapping) else one if isinstance(one, list) else []


def _is_small(divisor: Decimal) -> bool:
    """Whether its digits without the point, from the first to the last that is not zero, are a small number."""
    if not divisor.is_finite():
        return False
    _, digits, exponent = divisor.normalize().as_tuple()
    return -6 <= int(exponent) <= 5 and int("".join(map(str, digits))) * 10 ** max(int(exponent), 0) <= MOST_DIVISOR
