"""Any question in the middle of a conversation: one to three other questions and their answers stand before it.

They have nothing to do with it, and must change nothing. One of all may be about a picture, which stays in sight.
"""

from dataclasses import replace
from random import Random

from dgemma_jax.training.demo import (
    arithmetic,
    capitals,
    facts,
    greetings,
    identity,
    json_text,
    lists,
    outside,
    pictures,
    tool_call,
    tool_no_call,
    two_digits,
)
from dgemma_jax.training.demo.example import Example, Message, Split
from dgemma_jax.training.demo.pictures import Draw

FAMILY = "follow_up"
SHORT = 60
"""Characters of an answer here: two canvases, and no long list before a question."""

SPOKEN: tuple[Draw, ...] = (
    *(greetings.draw, identity.draw, capitals.draw, facts.draw, outside.draw),
    *(arithmetic.draw, two_digits.draw, json_text.draw, lists.draw),
)
SEEN: tuple[Draw, ...] = tuple(
    pictures.FAMILIES[family]
    for family in (pictures.COLOUR, pictures.SHAPE, pictures.COUNT, pictures.POSITION, pictures.DESCRIBE)
)
CALLED: tuple[Draw, ...] = (tool_call.draw, tool_no_call.draw)


def draw(rng: Random, split: Split, thinking: bool) -> Example:
    """The last question may need a tool, a picture, or neither."""
    (kind,) = rng.choices((SPOKEN, SEEN, CALLED), weights=(70, 12, 18))
    last = _short(rng, kind, split, thinking)
    before = [_short(rng, SPOKEN, split, False) for _ in range(rng.choices((1, 2, 3), weights=(60, 30, 10))[0])]
    if kind is SPOKEN and rng.random() < 0.15:
        before[rng.randrange(len(before))] = _short(rng, SEEN, split, False)
    return replace(
        last,
        family=FAMILY,
        messages=[*(message for example in before for message in _said(example)), *last.messages],
        media=tuple(medium for example in (*before, last) for medium in example.media),
    )


def _short(rng: Random, kinds: tuple[Draw, ...], split: Split, thinking: bool) -> Example:
    """An example of one of the kinds whose answer is short."""
    while True:
        drawn = rng.choice(kinds)(rng, split, thinking)
        if len(drawn.expected.get("content") or "") <= SHORT:
            return drawn


def _said(example: Example) -> list[Message]:
    """What stays of it in a conversation: nobody keeps thoughts."""
    return [{key: value for key, value in message.items() if key != "reasoning"} for message in example.messages]
