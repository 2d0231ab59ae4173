"""Bodies that are JSON by its grammar and still cannot be read: a number too large, a character cut in half.

The decoder reports such values without their place, or as broken JSON. This slower second look, for bodies that were
refused already, finds the place.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator
from typing import Any

from serve.errors import InvalidRequestError

_LARGEST_BODY = 2**20
"""Bytes of the largest body worth a second look."""


@dataclasses.dataclass(frozen=True)
class _TooLarge:
    """Stands for a number that no 64-bit float, or no integer we take, can hold."""


def unreadable(body: bytes) -> InvalidRequestError | None:
    """The refusal that names the place of the first such value; None when there is none, or it is no JSON either."""
    if len(body) > _LARGEST_BODY:
        return None
    try:
        value = json.loads(
            body, parse_int=_number(int), parse_float=_number(float), parse_constant=_refuse, object_pairs_hook=_Fields
        )
        what, path = next(_unreadable_in(value), ("", ""))
    except (ValueError, RecursionError):
        return None
    if not what:
        return None
    param = path.removeprefix(".") or None
    return InvalidRequestError(f"{what} - at `{param}`" if param else what, param=param, code="invalid_value")


class _Fields(list[tuple[str, Any]]):
    """An object, with all that it says twice."""


def _unreadable_in(value: Any) -> Iterator[tuple[str, str]]:
    """What is wrong and where, in the order of the text. A path is written only where something is found."""
    match value:
        case _TooLarge():
            yield "The number is out of range", ""
        case str() if _is_cut(value):
            yield "The text holds half a character (a lone surrogate)", ""
        case _Fields():
            for name, item in value:
                if _is_cut(name):
                    yield "The name of a field holds half a character (a lone surrogate)", ""
                    return
                yield from ((what, f".{name}{path}") for what, path in _unreadable_in(item))
        case list():
            for index, item in enumerate(value):
                yield from ((what, f"[{index}]{path}") for what, path in _unreadable_in(item))


def _is_cut(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)


def _number(kind: Callable[[str], float]) -> Callable[[str], float | _TooLarge]:
    def read(text: str) -> float | _TooLarge:
        try:
            value = kind(text)
        except ValueError:  # Python reads no integer of more than 4300 digits
            return _TooLarge()
        return value if isinstance(value, int) or math.isfinite(value) else _TooLarge()

    return read


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
