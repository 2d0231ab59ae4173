"""The demo model's text as a whole: the table of families with their shares, and seeded streams drawn from it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

from dgemma_jax.training.demo import (
    arithmetic,
    capitals,
    counting,
    facts,
    greetings,
    identity,
    json_text,
    memory,
    outside,
    system,
)
from dgemma_jax.training.demo.example import Example, Split


@dataclass(frozen=True)
class Family:
    """A kind of conversation: its share of the mix in percent and the function that draws one."""

    share: int
    draw: Callable[[Random, Split], Example]


FAMILIES: dict[str, Family] = {
    greetings.FAMILY: Family(4, greetings.draw),
    identity.FAMILY: Family(9, identity.draw),
    capitals.FAMILY: Family(16, capitals.draw),
    facts.FAMILY: Family(18, facts.draw),
    arithmetic.FAMILY: Family(15, arithmetic.draw),
    json_text.FAMILY: Family(13, json_text.draw),
    memory.FAMILY: Family(11, memory.draw),
    system.FAMILY: Family(9, system.draw),
    counting.FAMILY: Family(7, counting.draw),
    outside.FAMILY: Family(5, outside.draw),
}
_SHARES = [family.share for family in FAMILIES.values()]
_PATIENCE = 5000


def examples(split: Split, seed: int) -> Iterator[Example]:
    """An endless stream of the mix; the same split and seed give the same stream."""
    rng = Random(f"{split} {seed}")
    families = list(FAMILIES.values())
    while True:
        (family,) = rng.choices(families, weights=_SHARES)
        yield family.draw(rng, split)


def test_examples(family: str, count: int, seed: int) -> list[Example]:
    """`count` different test conversations of one family.

    Raises:
        ValueError: if the family has no `count` different ones: a long run of draws brings none that is new.
    """
    rng = Random(f"{family} {seed}")
    found: dict[str, Example] = {}
    stale = 0
    while len(found) < count and stale < _PATIENCE:
        example = FAMILIES[family].draw(rng, "test")
        stale = stale + 1 if repr(example.prompt) in found else 0
        found.setdefault(repr(example.prompt), example)
    if len(found) == count:
        return list(found.values())
    raise ValueError(f"family {family}: wanted {count} different test examples, found only {len(found)}; ask for fewer")
