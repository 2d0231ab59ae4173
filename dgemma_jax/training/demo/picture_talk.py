"""Several questions about one picture with several shapes, one after the other: which colour, or which kind, is which,
or how many there are of what.

What is answered before the last question is learned too, as text that is read, so that one picture teaches to look at
each of its shapes. Where it is which, the pairs that the families of colours and of shapes keep for their tests are
never shown in training; the test's last question is about one of them.
"""

from random import Random

from dgemma_jax.training.demo import picture_wordings as say
from dgemma_jax.training.demo.example import Example, Message, Split, assistant, user
from dgemma_jax.training.demo.picture_wordings import phrase
from dgemma_jax.training.demo.pictures import COLOUR, COUNT, SHAPE, Pair, companion, differs, how_many, one, pairs
from dgemma_jax.training.demo.scenes import KINDS, draw_scene

FAMILY = "image_talk"


def draw(rng: Random, split: Split, thinking: bool) -> Example:
    """Which is which, or how many."""
    return rng.choice((_which, _numbers))(rng, split, thinking)


def _which(rng: Random, split: Split, thinking: bool) -> Example:
    """Two to four shapes of different colours and kinds; each is asked about once."""
    about = rng.choices((COLOUR, SHAPE), weights=(40, 60), k=rng.randint(2, len(KINDS)))
    last = rng.choice(pairs(about[-1], split) if split == "test" else _shown())
    shown = [last]
    while len(shown) < len(about):
        shown.append(rng.choice([other for other in _shown() if differs(other, shown)]))
    turns = [_turn(rng, family, pair) for family, pair in zip(about, reversed(shown), strict=True)]
    return _talk(rng, shown, turns, f"I see {one(last[0])} {last[1]}." if thinking else None)


def _numbers(rng: Random, split: Split, thinking: bool) -> Example:
    """Two to four shapes, some of them equal: how many of each kind, and how many in all, the last about one kind."""
    asked = rng.choice(pairs(COUNT, split))
    shown = [asked]
    for _ in range(rng.randint(1, 3)):
        shown.append(rng.choice((rng.choice(shown), companion(rng, COUNT, lambda other: True))))
    others = sorted({kind for _, kind in shown} - {asked[1]})
    things = [*rng.sample(["shape", *others], k=len(others) + 1), asked[1]]
    turns = [how_many(rng, shown, thing) for thing in things]
    return _talk(rng, shown, [turn[:2] for turn in turns], turns[-1][2] if thinking else None)


def _talk(rng: Random, shown: list[Pair], turns: list[tuple[str, str]], thought: str | None) -> Example:
    """The conversation about a picture of the shapes; the thought is before the last answer."""
    picture = draw_scene(rng, rng.sample(shown, k=len(shown))).render()
    messages: list[Message] = []
    for question, answer in turns:
        messages += [user(question, [] if messages else [picture]), assistant(answer)]
    if thought:
        messages[-1]["reasoning"] = thought
    return Example(family=FAMILY, messages=messages, media=(picture,), thinking=thought is not None)


def _shown() -> list[Pair]:
    """The pairs that neither family keeps for its test."""
    return [pair for pair in pairs(COLOUR, "train") if pair in pairs(SHAPE, "train")]


def _turn(rng: Random, family: str, pair: Pair) -> tuple[str, str]:
    """A question and its answer, as the family of single questions puts them."""
    name, kind = pair
    if family == COLOUR:
        return phrase(rng, say.COLOUR_OF_KIND, kind=kind), f"The {kind} is {name}."
    return phrase(rng, say.SHAPE_OF_COLOUR, colour=name), f"The {name} shape is {one(kind)}."
