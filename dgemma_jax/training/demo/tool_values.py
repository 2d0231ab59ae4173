"""Values of tool parameters and of tool results, by kind: `number`, `city`, `name`, ...

Open kinds have values of their own for the test; the few values of closed kinds (`OPEN` says which) are shared.
Training also has numbers of more digits than the test, so that each digit is copied from its place.
"""

from collections.abc import Callable
from random import Random

from dgemma_jax.training.demo.capitals import COUNTRIES
from dgemma_jax.training.demo.example import Split
from dgemma_jax.training.demo.names import draw_name
from dgemma_jax.training.demo.tool_words import belongs, draw_word

Value = str | int | float | bool
Draw = Callable[[Random, Split], Value]

_SPLITS: tuple[Split, Split] = ("train", "test")
_CITIES = [country.capital for country in COUNTRIES]
_MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October")
_CLOSED: dict[str, tuple[Value, ...]] = {
    "colour": ("red", "green", "blue", "yellow", "orange", "purple", "black", "white", "pink", "brown"),
    "day": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
    "size": ("small", "medium", "large"),
    "language": ("English", "French", "German", "Spanish", "Italian"),
    "currency": ("euros", "dollars", "pounds", "yen", "francs", "pesos"),
    "unit": ("celsius", "fahrenheit", "metres", "miles"),
    "sky": ("sunny", "cloudy", "rainy", "windy", "clear", "foggy"),
    "flag": (True, False),
}
_RANGES = {
    "number": (0, 999),  # up to a million in training
    "hour": (0, 23),
    "minute": (0, 59),
    "few": (1, 40),
    "year": (1900, 2049),
    "degrees": (-20, 45),
}


def shown(value: Value) -> str:
    """A value as people and the chat template write it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def json_type(kind: str) -> str:
    """The JSON schema type of a kind."""
    if kind in _RANGES:
        return "integer"
    return "boolean" if kind == "flag" else "string"


def draw_value(rng: Random, split: Split, kind: str) -> Value:
    """A value of the kind, for the split where the kind is open."""
    return _DRAW[kind](rng, split)


def _title(rng: Random, split: Split) -> str:
    if rng.random() < 0.5:
        return draw_name(rng, split)
    return f"{draw_word(rng, split)} {draw_word(rng, split)}".title()


def _text(rng: Random, split: Split) -> str:
    return f"{rng.choice(('hello', 'thanks', 'call', 'see you', 'happy birthday'))} {draw_name(rng, split)}"


def _date(rng: Random, split: Split) -> str:
    while True:
        date = f"{rng.randrange(1, 31)} {rng.choice(_MONTHS)}"
        if belongs(date, split):
            return date


def _decimal(rng: Random, split: Split) -> float:
    practice = split == "train" and rng.random() < 0.3
    while True:
        value = rng.randrange(1, 100_000) / rng.choice((10, 100)) if practice else rng.randrange(1, 600) / 10
        if belongs(str(value), split):
            return value


def _number(rng: Random, split: Split) -> int:
    practice = split == "train" and rng.random() < 0.3
    while True:
        value = rng.randrange(10 ** rng.randint(2, 6)) if practice else rng.choice(_NUMBERS[split])
        if belongs(str(value), split):
            return value


def _from(pools: dict[Split, list[Value]]) -> Draw:
    return lambda rng, split: rng.choice(pools[split])


def _pools(values: list[Value]) -> dict[Split, list[Value]]:
    return {split: [value for value in values if belongs(str(value), split)] for split in _SPLITS}


_NUMBERS: dict[Split, list[int]] = {
    split: [number for number in range(1000) if belongs(str(number), split)] for split in _SPLITS
}
_DRAW: dict[str, Draw] = {
    **{kind: _from({split: list(values) for split in _SPLITS}) for kind, values in _CLOSED.items()},
    **{kind: _from(_pools(list(range(low, high + 1)))) for kind, (low, high) in _RANGES.items()},
    "number": _number,
    "city": _from(_pools(list(_CITIES))),
    "name": draw_name,
    "word": draw_word,
    "title": _title,
    "text": _text,
    "date": _date,
    "decimal": _decimal,
}
OPEN = frozenset(_DRAW.keys() - _CLOSED.keys())
