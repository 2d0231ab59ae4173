"""Short JSON written from given values: flat and nested objects, lists, and objects that hold a list.

Names in the test are names that training never shows; values without names come in combinations that are held out.
In training some values are longer numbers or made-up words, so that they are copied and not known by heart.
"""

import json
import re
from random import Random

from dgemma_jax.training.demo.capitals import COUNTRIES
from dgemma_jax.training.demo.example import Example, Split, ask
from dgemma_jax.training.demo.facts import DAYS
from dgemma_jax.training.demo.mistakes import half_of_training, slipped
from dgemma_jax.training.demo.names import draw_name
from dgemma_jax.training.demo.tool_words import draw_made_up
from dgemma_jax.training.demo.wording import draw_split, vary

FAMILY = "json_text"

COLOURS = ("red", "blue", "green", "yellow", "black", "white", "orange", "purple", "pink", "brown", "grey")
ANIMALS = ("cat", "dog", "cow", "horse", "sheep", "duck", "pig", "lion", "owl", "bee", "frog", "bird", "spider", "ant")
JOBS = ("teacher", "doctor", "baker", "cook", "farmer", "pilot", "writer", "singer", "painter", "driver")
FOODS = ("bread", "rice", "soup", "pizza", "cake", "cheese", "apple", "banana", "salad", "pasta")
CITIES = tuple(country.capital for country in COUNTRIES if " " not in country.capital)
LANDS = tuple(country.name for country in COUNTRIES if " " not in country.name)

WORDS = {
    "city": CITIES,
    "country": LANDS,
    "colour": COLOURS,
    "color": COLOURS,
    "animal": ANIMALS,
    "job": JOBS,
    "food": FOODS,
    "day": DAYS,
}
KEYS = ("name", "age", "number", *WORDS)
OUTER = {
    "user": ("name", "age", "job", "city"),
    "person": ("name", "age", "job", "country"),
    "friend": ("name", "age", "city", "food"),
    "pet": ("animal", "name", "colour", "age"),
    "home": ("city", "country", "number"),
    "meal": ("food", "day", "number"),
}
"""Keys whose value is an object, and what that object may hold."""

LISTS = {"names": "name", "colours": "colour", "animals": "animal", "numbers": "number", "cities": "city"}
LISTS |= {"foods": "food", "days": "day"}
"""Keys whose value is a list, and the key that its items are drawn for."""

OBJECT = (
    "Write JSON with {fields}.",
    "Write JSON with {fields}.",
    "Write a JSON object with {fields}.",
    "Write me JSON with {fields}.",
    "Give me JSON with {fields}.",
    "Give me a JSON object with {fields}.",
    "Make JSON with {fields}.",
    "Make a JSON object with {fields}.",
    "Return JSON with {fields}.",
    "Return a JSON object with {fields}.",
    "Create a JSON object with {fields}.",
    "Create JSON with {fields}.",
    "JSON with {fields}",
    "Can you write JSON with {fields}?",
    "Can you give me a JSON object with {fields}?",
    "Could you make JSON with {fields}?",
    "Write this as JSON: {fields}",
    "Turn this into JSON: {fields}",
    "As JSON: {fields}",
    "I need JSON with {fields}.",
    "I want a JSON object with {fields}.",
    "Output JSON with {fields}.",
    "Show me JSON with {fields}.",
)
LIST = (
    "Write a JSON list with {items}.",
    "Write a JSON list of {items}.",
    "Give me a JSON list of {items}.",
    "Make a JSON list with {items}.",
    "Create a JSON list of {items}.",
    "Return a JSON list with {items}.",
    "Write a JSON array with {items}.",
    "Give me a JSON array of {items}.",
    "Return a JSON array of {items}.",
    "Write this as a JSON list: {items}",
    "Turn this into a JSON list: {items}",
    "JSON list of {items}",
    "Can you write a JSON list with {items}?",
    "Could you give me a JSON array with {items}?",
    "I need a JSON list of {items}.",
    "I want a JSON array with {items}.",
)
FIELD_STYLES = ("{key} {value}", "{key} {value}", "{key} {value}", "{key}: {value}", "{key}={value}", "{key} = {value}")

Scalar = str | int
Value = Scalar | list[Scalar] | dict[str, Scalar]


def _scalar(rng: Random, split: Split, key: str) -> Scalar:
    if key == "name":
        return draw_name(rng, split)
    practice = split == "train" and rng.random() < 0.2
    if key in ("age", "number"):
        return rng.randrange(10 ** rng.randint(1, 5)) if practice else rng.randrange(1, 100)
    return draw_made_up(rng, split).capitalize() if practice else rng.choice(WORDS[key])


def _scalars(rng: Random, split: Split, keys: list[str]) -> dict[str, Scalar]:
    return {key: _scalar(rng, split, key) for key in keys}


def _items(rng: Random, split: Split, key: str, most: int) -> list[Scalar]:
    count = rng.randint(2, most)
    if key in WORDS and (split == "test" or rng.random() < 0.8):
        return list(rng.sample(WORDS[key], k=count))
    return [_scalar(rng, split, key) for _ in range(count)]


def _flat(rng: Random, split: Split) -> dict[str, Value]:
    """One to four keys; two in three objects have a name, mostly in front."""
    others = rng.sample(KEYS[1:], k=rng.choice((0, 1, 1, 1, 2, 2, 3)))
    keys = ["name", *others] if not others or rng.random() < 0.65 else others
    if rng.random() < 0.25:
        rng.shuffle(keys)
    return {**_scalars(rng, split, keys)}


def _nested(rng: Random, split: Split) -> dict[str, Value]:
    """An object in an object, alone or with another key before or after it."""
    outer = rng.choice(tuple(OUTER))
    inner = sorted(rng.sample(OUTER[outer], k=2), key=OUTER[outer].index)
    value: dict[str, Value] = {outer: _scalars(rng, split, inner)}
    if rng.random() < 0.3:
        return value
    beside: dict[str, Value] = {**_scalars(rng, split, [rng.choice([key for key in KEYS if key not in OUTER[outer]])])}
    return value | beside if rng.random() < 0.7 else beside | value


def _with_list(rng: Random, split: Split) -> dict[str, Value]:
    """An object that holds a list, alone or after another key."""
    key = rng.choice(tuple(LISTS))
    value: dict[str, Value] = {key: _items(rng, split, LISTS[key], 3)}
    if rng.random() < 0.5:
        return value
    return {**_scalars(rng, split, [rng.choice([other for other in KEYS if other != LISTS[key]])])} | value


def _joined(rng: Random, parts: list[str]) -> str:
    if len(parts) == 1 or rng.random() < 0.3:
        return ", ".join(parts)
    return ", ".join(parts[:-1]) + " and " + parts[-1]


def _told(value: Value, style: str) -> str:
    """A value as a user types it: "7", "(name Ada, age 7)", "[red, blue]"."""
    if isinstance(value, dict):
        return "(" + ", ".join(style.format(key=key, value=inner) for key, inner in value.items()) + ")"
    return f"[{', '.join(map(str, value))}]" if isinstance(value, list) else str(value)


def _make(rng: Random, split: Split) -> dict[str, Value] | list[Scalar]:
    kind = rng.random()
    if kind < 0.2:
        key = rng.choice(tuple(LISTS.values()))
        return _items(rng, split, key, 3 if key == "name" else 5)
    return (_flat if kind < 0.7 else _nested if kind < 0.88 else _with_list)(rng, split)


def _key(value: dict[str, Value] | list[Scalar]) -> str:
    """The values without the marks: [1, 23] and [12, 3] may be put in the same characters."""
    return re.sub(r"\W", "", json.dumps(value).lower())


def _question(rng: Random, value: dict[str, Value] | list[Scalar]) -> str:
    if isinstance(value, list):
        return vary(rng, rng.choice(LIST)).format(items=_joined(rng, [str(item) for item in value]))
    style = rng.choice(FIELD_STYLES)
    fields = [style.format(key=key, value=_told(inner, style)) for key, inner in value.items()]
    return vary(rng, rng.choice(OBJECT)).format(fields=_joined(rng, fields))


def _thought(value: dict[str, Value] | list[Scalar]) -> str:
    if isinstance(value, list):
        return f"A JSON list of {len(value)} items."
    *keys, last = value
    return f"JSON with {', '.join(keys)} and {last}." if keys else f"JSON with {last}."


def draw(rng: Random, split: Split, thinking: bool) -> Example:
    """A request with all keys and values in order, and the JSON text."""
    value = draw_split(rng, split, lambda rng: _make(rng, split), _key)
    question, text = _question(rng, value), json.dumps(value)
    mistake = half_of_training(rng, split, text, lambda: slipped(rng, text))
    return ask(FAMILY, question, text, _thought(value) if thinking else None, mistake=mistake)
