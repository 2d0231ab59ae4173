"""Six families of questions about pictures: colour, shape, number, place, two pictures compared, and a description.

Of the 40 (colour, kind) pairs each family keeps four for its test: there the shape that is asked about has a pair
that training never shows in this family, although it shows the colour and the kind often.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from random import Random

from dgemma_jax.training.demo import picture_wordings as say
from dgemma_jax.training.demo.example import Example, Medium, Split, assistant, user
from dgemma_jax.training.demo.picture_wordings import phrase
from dgemma_jax.training.demo.scenes import COLOURS, KINDS, Scene, Size, Spot, compose, draw_scene, draw_size

COLOUR, SHAPE, COUNT = "image_colour", "image_shape", "image_count"
POSITION, PAIR, DESCRIBE = "image_position", "image_pair", "image_describe"

PLACES = {
    "at the top left": (0, 0),
    "at the top right": (1, 0),
    "at the bottom left": (0, 1),
    "at the bottom right": (1, 1),
    "in the centre": (0.5, 0.5),
}

Pair = tuple[str, str]
Draw = Callable[[Random, Split, bool], Example]


@dataclass(frozen=True)
class Sight:
    """What is shown (pictures, or the frames of a video), what is asked, and what is right."""

    scenes: tuple[Scene, ...]
    question: str
    answer: str
    thought: str


@cache
def pairs(family: str, split: Split) -> tuple[Pair, ...]:
    """The (colour, kind) pairs of the split in this family; the test's has every kind once, in four colours."""
    tested = {*zip(Random(family).sample(COLOURS, len(KINDS)), KINDS, strict=True)}
    every = ((colour, kind) for colour in COLOURS for kind in KINDS)
    return tuple(pair for pair in every if (pair in tested) == (split == "test"))


def companion(rng: Random, family: str, fits: Callable[[Pair], bool]) -> Pair:
    """A pair to stand beside the one that is asked about; always of the training kind."""
    return rng.choice([pair for pair in pairs(family, "train") if fits(pair)])


def unlike(rng: Random, family: str, *shown: Pair) -> Pair:
    """A companion of another colour and another kind than all that are shown."""
    return companion(rng, family, lambda other: differs(other, shown))


def differs(other: Pair, shown: Sequence[Pair]) -> bool:
    """Whether its colour and its kind are those of none that is shown."""
    return all(other[0] != name and other[1] != kind for name, kind in shown)


def crowd(rng: Random, family: str, asked: Pair, split: Split, alone: float) -> list[Pair]:
    """The pair alone, in that share of the cases, or among others of other colours and kinds.

    The test has one other. Training has up to three: which pairs there are is then no help any more in saying which
    colour goes with which kind, and they must be looked at.
    """
    shown = [asked]
    if rng.random() >= alone:
        for _ in range(1 if split == "test" else rng.randint(1, 3)):
            shown.append(unlike(rng, family, *shown))
    return shown


def one(word: str) -> str:
    """The word with its article."""
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


def some(count: int, word: str) -> str:
    """The number and the word, which has an s from two on."""
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def example(family: str, media: Sequence[Medium], sight: Sight, thinking: bool) -> Example:
    """The conversation about the media."""
    messages = [user(sight.question, media), assistant(sight.answer, sight.thought if thinking else None)]
    return Example(family=family, messages=messages, media=tuple(media), thinking=thinking)


def colour(rng: Random, split: Split) -> Sight:
    """The colour of the only shape, or of one among others."""
    asked = rng.choice(pairs(COLOUR, split))
    shown = crowd(rng, COLOUR, asked, split, alone=0.6 if split == "test" else 0.3)
    name, kind = asked
    alone = len(shown) == 1 and rng.random() < 0.4
    question = phrase(rng, say.COLOUR_OF_ONE if alone else say.COLOUR_OF_KIND, kind=kind)
    return Sight((draw_scene(rng, shown),), question, f"The {kind} is {name}.", f"I see {one(name)} {kind}.")


def shape(rng: Random, split: Split) -> Sight:
    """The kind of the only shape, or of the one that has the colour."""
    asked = rng.choice(pairs(SHAPE, split))
    name, kind = asked
    thought = f"I see {one(name)} {kind}."
    if rng.random() < (0.5 if split == "test" else 0.35):
        return Sight((draw_scene(rng, [asked]),), phrase(rng, say.SHAPE_OF_ONE), f"It is {one(kind)}.", thought)
    shown = crowd(rng, SHAPE, asked, split, alone=0.2 if split == "test" else 0.1)
    question = phrase(rng, say.SHAPE_OF_COLOUR, colour=name)
    return Sight((draw_scene(rng, shown),), question, f"The {name} shape is {one(kind)}.", thought)


def count(rng: Random, split: Split) -> Sight:
    """The number of all shapes or of one kind; other kinds may stand beside them."""
    asked = rng.choice(pairs(COUNT, split))
    kind = asked[1]
    look = rng.random()
    if split == "train" and rng.random() < 0.3:
        shown = _many(rng, asked)
    elif look < 0.6:
        shown = [asked] * rng.randint(1, 4)
    elif look < 0.75:
        more = rng.randint(1, 3)
        shown = [asked, *(companion(rng, COUNT, lambda other: other[1] == kind) for _ in range(more))]
    else:
        shown = [asked] * rng.randint(1, 3)
        more = rng.randint(1, 4 - len(shown))
        shown += [companion(rng, COUNT, lambda other: other[1] != kind) for _ in range(more)]
    question, answer, thought = how_many(rng, shown, kind if rng.random() < 0.5 else "shape")
    return Sight((draw_scene(rng, shown),), question, answer, thought)


def _many(rng: Random, asked: Pair) -> list[Pair]:
    """Two to six shapes, some of them equal, in training only: four is then no number to end with when in doubt."""
    shown = [asked]
    for _ in range(rng.choice((1, 2, 2, 3, 3, 4, 5))):
        shown.append(rng.choice((asked, rng.choice(shown), companion(rng, COUNT, lambda other: True))))
    return shown


def how_many(rng: Random, shown: Sequence[Pair], thing: str) -> tuple[str, str, str]:
    """The question for the number of a kind, or of every "shape"; its answer and its thought."""
    number = sum(thing in ("shape", kind) for _, kind in shown)
    found = some(number, thing)
    verb = "is" if number == 1 else "are"
    return phrase(rng, say.COUNT, things=f"{thing}s"), f"There {verb} {found}.", f"I count {found}."


def place_spot(rng: Random, size: Size, place: str) -> Spot:
    """Clearly at the place: a middle within 0.3 of the corner's sides, or within 0.06 of the centre."""
    side = rng.uniform(0.25, 0.36) * min(size)
    x, y = (_along(rng, share, length, side) for share, length in zip(PLACES[place], size, strict=True))
    return Spot(x, y, side)


def _along(rng: Random, share: float, length: int, side: float) -> float:
    if share == 0.5:
        return length * rng.uniform(0.44, 0.56)
    from_edge = rng.uniform(side / 2 + 1, 0.3 * length)
    return length - from_edge if share else from_edge


def position(rng: Random, split: Split) -> Sight:
    """In which corner the shape is, or in the centre."""
    asked = rng.choice(pairs(POSITION, split))
    kind = asked[1]
    place = rng.choice(tuple(PLACES))
    size = draw_size(rng)
    scene = compose(rng, size, [asked], [place_spot(rng, size, place)])
    question = phrase(rng, say.WHERE, kind=kind)
    return Sight((scene,), question, f"The {kind} is {place}.", f"I see the {kind} {place}.")


def pair(rng: Random, split: Split) -> Sight:
    """One of four questions about two pictures."""
    compose = rng.choice((_which_shows, _same_colour, _same_shape, _more_shapes))
    return compose(rng, rng.choice(pairs(PAIR, split)))


def _shuffled(rng: Random, *shown: Pair) -> list[Pair]:
    return rng.sample(shown, k=len(shown))


def _singles(rng: Random, shown: Sequence[Pair]) -> tuple[Scene, ...]:
    return tuple(draw_scene(rng, [pair]) for pair in shown)


def _which_shows(rng: Random, asked: Pair) -> Sight:
    shown = _shuffled(rng, asked, companion(rng, PAIR, lambda other: other[1] != asked[1]))
    question = phrase(rng, say.WHICH_SHOWS, a_kind=one(asked[1]))
    ordinal = ("first", "second")[shown.index(asked)]
    thought = f"First {one(shown[0][1])}, then {one(shown[1][1])}."
    return Sight(_singles(rng, shown), question, f"The {ordinal} picture.", thought)


def _same_colour(rng: Random, asked: Pair) -> Sight:
    same = rng.random() < 0.5
    shown = _shuffled(rng, asked, companion(rng, PAIR, lambda other: (other[0] == asked[0]) == same))
    first, second = (name for name, _ in shown)
    answer = f"Yes, both are {first}." if same else f"No, the first is {first} and the second is {second}."
    return Sight(_singles(rng, shown), phrase(rng, say.SAME_COLOUR), answer, f"First {first}, then {second}.")


def _same_shape(rng: Random, asked: Pair) -> Sight:
    same = rng.random() < 0.5
    shown = _shuffled(rng, asked, companion(rng, PAIR, lambda other: (other[1] == asked[1]) == same))
    first, second = (kind for _, kind in shown)
    answer = f"No, the first is {one(first)} and the second is {one(second)}."
    if same:
        answer = f"Yes, both are {first}s."
    return Sight(_singles(rng, shown), phrase(rng, say.SAME_SHAPE), answer, f"First {one(first)}, then {one(second)}.")


def _more_shapes(rng: Random, asked: Pair) -> Sight:
    first, second = rng.sample(range(1, 5), k=2)
    left, right = _shuffled(rng, asked, companion(rng, PAIR, lambda other: True))
    scenes = (draw_scene(rng, [left] * first), draw_scene(rng, [right] * second))
    answer = "The first picture." if first > second else "The second picture."
    return Sight(scenes, phrase(rng, say.MORE_SHAPES), answer, f"First {some(first, 'shape')}, then {second}.")


def describe(rng: Random, split: Split) -> Sight:
    """One to four equal shapes, or two to four of different colours and kinds; and the background."""
    asked = rng.choice(pairs(DESCRIBE, split))
    if rng.random() < 0.6:
        shown = crowd(rng, DESCRIBE, asked, "train", alone=0.0)
        # By the alphabet: a picture has no first shape.
        things = [f"{one(name)} {kind}" for name, kind in sorted(shown, key=lambda pair: pair[1])]
        found, thought = f"{', '.join(things[:-1])} and {things[-1]}", f"I see {len(shown)} shapes."
    else:
        shown = [asked] * rng.choice((1, 1, 1, 2, 3, 4))
        name, kind = asked
        found = f"{one(name)} {kind}" if len(shown) == 1 else f"{len(shown)} {name} {kind}s"
        thought = f"I see {found}."
    scene = draw_scene(rng, shown)
    answer = f"{found[0].upper()}{found[1:]} on {one(scene.background.colour.name)} background."
    return Sight((scene,), phrase(rng, say.DESCRIBE), answer, thought)


SIGHTS: dict[str, Callable[[Random, Split], Sight]] = {
    COLOUR: colour,
    SHAPE: shape,
    COUNT: count,
    POSITION: position,
    PAIR: pair,
    DESCRIBE: describe,
}


def draw(family: str, rng: Random, split: Split, thinking: bool) -> Example:
    """A question of the family about one picture, or two."""
    sight = SIGHTS[family](rng, split)
    return example(family, [scene.render() for scene in sight.scenes], sight, thinking)


FAMILIES: dict[str, Draw] = {family: partial(draw, family) for family in SIGHTS}
