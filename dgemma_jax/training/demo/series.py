"""A list in its one written form, and the mistakes that are easily made in it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from random import Random

MOST = 14
"""Items by which a mistaken list may be too long or too short."""


@dataclass(frozen=True)
class Series:
    """Items, and those that would follow the last and lead up to the first, nearest first, if the list went on."""

    items: Sequence[str]
    after: Sequence[str] = ()
    before: Sequence[str] = ()
    between: str = " "
    end: str = ""

    @classmethod
    def numbers(cls, first: int, last: int, step: int) -> Series:
        """Numbers from `first` to `last`; none below zero follows."""
        sign = 1 if step > 0 else -1
        after, before = (
            [str(number) for index in range(1, MOST + 1) if (number := near + index * by) >= 0]
            for near, by in ((last, step), (first, -step))
        )
        return cls([str(number) for number in range(first, last + sign, step)], after, before)

    @classmethod
    def part(cls, names: Sequence[str], start: int, count: int) -> Series:
        """`count` of the names, from number `start` on."""
        return cls(names[start : start + count], names[start + count :], names[:start][::-1], between=", ")

    @classmethod
    def table(cls, k: int, count: int) -> Series:
        """The first lines of the table of `k`."""
        lines = [f"{k} x {n} = {k * n}" for n in range(1, count + MOST + 1)]
        return cls(lines[:count], lines[count:], between="\n")

    def __str__(self) -> str:
        return self._written(self.items)

    def mistake(self, rng: Random) -> str:
        """The list as it may go wrong: past its end, not to its end, a part twice or left out, or the other way.

        Half of those that go past the end say the last item all the same.
        """
        items, count = list(self.items), rng.randint(1, MOST)
        kind = rng.random()
        if kind < 0.5 and self.after:
            more = [*items, *self.after[:count]]
            return self._written(more if rng.random() < 0.5 else [*more, items[-1]])
        if kind < 0.7 and len(items) > 1:
            return self._written(items[: max(1, len(items) - count)])
        if kind < 0.8 and self.before:
            return self._written([items[0], *self.before[: len(items)]])
        start, stop = sorted(rng.sample(range(len(items) + 1), 2))
        return self._written(items[:stop] + items[start:] if rng.random() < 0.5 else items[: start or 1] + items[stop:])

    def _written(self, items: Iterable[str]) -> str:
        return self.between.join(items) + self.end
