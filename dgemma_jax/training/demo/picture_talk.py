"""Several questions about one picture with several shapes, one after the other: which colour, or which kind, is which.

What is answered before the last question is learned too, as text that is read, so that one picture teaches to look at
each of its shapes. The pairs that the families of colours and of shapes keep for their tests are never shown here in
training; the test's last question is about one of them.
"""

from random import Random

from dgemma_jax.training.demo import picture_wordings as say
from dgemma_jax.training.demo.example import Example, Message, Split, assistant, user
from dgemma_jax.training.demo.picture_wordings import phrase
from dgemma_jax.training.demo.pictures import COLOUR, SHAPE, Pair, differs, one, pairs
from dgemma_jax.training.demo.scenes import KINDS, draw_scene

FAMILY = "image_talk"


def draw(rng: Random, split: Split, thinking: bool) -> Example:
    """Two to four shapes of different colours and kinds; each is asked about once."""
    about = rng.choices((COLOUR, SHAPE), weights=(40, 60), k=rng.randint(2, len(KINDS)))
    last = rng.choice(pairs(about[-1], split) if split == "test" else _shown())
    shown = [last]
    while len(shown) < len(about):
        shown.append(rng.choice([other for other in _shown() if differs(other, shown)]))
    picture = draw_scene(rng, rng.sample(shown, k=len(shown))).render()
    messages: list[Message] = []
    for family, pair in zip(about, reversed(shown), strict=True):
        question, answer = _turn(rng, family, pair)
        messages += [user(question, [] if messages else [picture]), assistant(answer)]
    if thinking:
        name, kind = last
        messages[-1]["reasoning"] = f"I see {one(name)} {kind}."
    return Example(family=FAMILY, messages=messages, media=(picture,), thinking=thinking)


def _shown() -> list[Pair]:
    """The pairs that neither family keeps for its test."""
    return [pair for pair in pairs(COLOUR, "train") if pair in pairs(SHAPE, "train")]


def _turn(rng: Random, family: str, pair: Pair) -> tuple[str, str]:
    """A question and its answer, as the family of single questions puts them."""
    name, kind = pair
    if family == COLOUR:
        return phrase(rng, say.COLOUR_OF_KIND, kind=kind), f"The {kind} is {name}."
    return phrase(rng, say.SHAPE_OF_COLOUR, colour=name), f"The {name} shape is {one(kind)}."
