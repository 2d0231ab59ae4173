"""Short JSON written from given values: flat objects of one to three keys, and lists.

The test split uses names that training never shows; everything else may be seen.
"""

import json
from random import Random

from dgemma_jax.training.demo.capitals import COUNTRIES
from dgemma_jax.training.demo.example import Example, Split, ask
from dgemma_jax.training.demo.names import draw_name
from dgemma_jax.training.demo.wording import vary

FAMILY = "json_text"

COLOURS = ("red", "blue", "green", "yellow", "black", "white", "orange", "purple", "pink", "brown", "grey")
ANIMALS = ("cat", "dog", "cow", "horse", "sheep", "duck", "pig", "lion", "owl", "bee", "frog", "bird", "spider", "ant")
CITIES = tuple(country.capital for country in COUNTRIES if " " not in country.capital)
KEYS = ("name", "age", "city", "colour", "color", "animal")

OBJECT = (
    "Write JSON with {fields}.",
    "Write JSON with {fields}.",
    "Write a JSON object with {fields}.",
    "Give me JSON with {fields}.",
    "Give me a JSON object with {fields}.",
    "Make JSON with {fields}.",
    "Make a JSON object with {fields}.",
    "Return JSON with {fields}.",
    "Return a JSON object with {fields}.",
    "Create a JSON object with {fields}.",
    "JSON with {fields}",
    "Can you write JSON with {fields}?",
    "Write this as JSON: {fields}",
    "I need JSON with {fields}.",
    "Output JSON with {fields}.",
)
LIST = (
    "Write a JSON list with {items}.",
    "Write a JSON list of {items}.",
    "Give me a JSON list of {items}.",
    "Make a JSON list with {items}.",
    "Return a JSON list with {items}.",
    "Write a JSON array with {items}.",
    "Give me a JSON array of {items}.",
    "Write this as a JSON list: {items}",
    "JSON list of {items}",
    "Can you write a JSON list with {items}?",
)
FIELD_STYLES = ("{key} {value}", "{key} {value}", "{key} {value}", "{key}: {value}", "{key}={value}", "{key} = {value}")

Value = str | int


def _value(rng: Random, split: Split, key: str) -> Value:
    match key:
        case "name":
            return draw_name(rng, split)
        case "age":
            return rng.randrange(100)
        case "city":
            return rng.choice(CITIES)
        case "animal":
            return rng.choice(ANIMALS)
        case _:
            return rng.choice(COLOURS)


def _keys(rng: Random, split: Split) -> list[str]:
    """One to three different keys, half of the time starting with the name; a test object always has a name."""
    others = rng.sample(
        ("age", "city", "animal", rng.choice(("colour", "colour", "color"))), k=rng.choice((0, 1, 1, 2))
    )
    if split == "test" or not others or rng.random() < 0.5:
        return ["name", *others]
    keys = [*others, "name"] if rng.random() < 0.5 else others
    return rng.sample(keys, k=len(keys))


def _joined(rng: Random, parts: list[str]) -> str:
    if len(parts) == 1 or rng.random() < 0.3:
        return ", ".join(parts)
    return ", ".join(parts[:-1]) + " and " + parts[-1]


def _object(rng: Random, split: Split) -> tuple[str, str]:
    values = {key: _value(rng, split, key) for key in _keys(rng, split)}
    style = rng.choice(FIELD_STYLES)
    fields = _joined(rng, [style.format(key=key, value=value) for key, value in values.items()])
    return vary(rng, rng.choice(OBJECT)).format(fields=fields), json.dumps(values)


def _list(rng: Random, split: Split) -> tuple[str, str]:
    count = rng.choice((2, 2, 3, 4))
    items: list[Value]
    kind = "names" if split == "test" else rng.choice(("names", "colours", "animals", "numbers"))
    if kind == "names":
        items = [draw_name(rng, split) for _ in range(min(count, 3))]
    elif kind == "numbers":
        items = [rng.randrange(100) for _ in range(count)]
    else:
        items = [*rng.sample(COLOURS if kind == "colours" else ANIMALS, k=count)]
    listed = _joined(rng, [str(item) for item in items])
    return vary(rng, rng.choice(LIST)).format(items=listed), json.dumps(items)


def draw(rng: Random, split: Split) -> Example:
    """A request for an object (three in four) or a list, and the JSON text."""
    question, answer = _object(rng, split) if rng.random() < 0.75 else _list(rng, split)
    return ask(FAMILY, question, answer)
