"""The demo model's text as a whole: the table of families with their shares, and seeded examples drawn from it."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from dgemma_jax.training.demo import (
    arithmetic,
    capitals,
    facts,
    follow_up,
    greetings,
    identity,
    json_text,
    lists,
    memory,
    outside,
    picture_talk,
    pictures,
    system,
    tool_call,
    tool_no_call,
    tool_result,
    tool_two_calls,
    two_digits,
    videos,
)
from dgemma_jax.training.demo.example import Example, Split

Draw = Callable[[Random, Split, bool], Example]


@dataclass(frozen=True)
class Family:
    """A kind of conversation: its share of the mix, the function that draws one, and how often thinking is on."""

    share: float
    draw: Draw
    thinking: float = 0.4


FAMILIES: dict[str, Family] = {
    "greetings": Family(2, greetings.draw),
    "identity": Family(2, identity.draw),
    "capitals": Family(8, capitals.draw),
    "facts": Family(4, facts.draw),
    "follow_up": Family(12, follow_up.draw),
    "outside": Family(2, outside.draw),
    "system": Family(44, system.draw),
    "arithmetic": Family(14, arithmetic.draw),
    "two_digits": Family(10, two_digits.draw, thinking=0.6),
    "json_text": Family(48, json_text.draw),
    "memory": Family(4, memory.draw),
    "lists": Family(72, lists.draw_long, thinking=0.25),
    "tool_call": Family(60, tool_call.draw),
    "two_calls": Family(20, tool_two_calls.draw),
    "tool_result": Family(24, tool_result.draw),
    "no_call": Family(30, tool_no_call.draw),
    "image_colour": Family(2, pictures.FAMILIES["image_colour"]),
    "image_shape": Family(6, pictures.FAMILIES["image_shape"]),
    "image_count": Family(32, pictures.FAMILIES["image_count"]),
    "image_position": Family(3, pictures.FAMILIES["image_position"]),
    "image_pair": Family(14, pictures.FAMILIES["image_pair"]),
    "image_describe": Family(2, pictures.FAMILIES["image_describe"]),
    "image_talk": Family(8, picture_talk.draw),
    "video_motion": Family(4, videos.FAMILIES["video_motion"]),
    "video_first": Family(4, videos.FAMILIES["video_first"]),
}
_NAMES = list(FAMILIES)
_SHARES = [family.share for family in FAMILIES.values()]
_PATIENCE = 5000


def example(split: Split, seed: int, index: int) -> Example:
    """Example number `index` of the endless mix: always the same for the same split and seed."""
    rng = Random(f"{split} {seed} {index}")
    (name,) = rng.choices(_NAMES, weights=_SHARES)
    family = FAMILIES[name]
    return family.draw(rng, split, rng.random() < family.thinking)


def test_examples(family: str, count: int, seed: int, *, thinking: bool | None = None) -> list[Example]:
    """`count` different test conversations of one family; `thinking` None: as often on as in training.

    Raises:
        ValueError: if the family has no `count` different ones: a long run of draws brings none that is new.
    """
    rng = Random(f"{family} {seed}")
    found: dict[str, Example] = {}
    stale = 0
    while len(found) < count and stale < _PATIENCE:
        on = rng.random() < FAMILIES[family].thinking if thinking is None else thinking
        drawn = FAMILIES[family].draw(rng, "test", on)
        key = repr((drawn.prompt, drawn.tools))
        stale = stale + 1 if key in found else 0
        found.setdefault(key, drawn)
    if len(found) == count:
        return list(found.values())
    raise ValueError(f"family {family}: wanted {count} different test examples, found only {len(found)}; ask for fewer")
