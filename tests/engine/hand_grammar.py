"""A grammar that can be followed by hand: every token is larger than the one before, and an end follows large ones."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np

END = 1
FIRST_TO_END = 30


class Rising:
    """Stands in for `dgemma_jax.grammar.Grammar` and, from `begin` on, for its `Matcher`."""

    def __init__(self, size: int = 50, end: int = END) -> None:
        self.size, self.end = size, end
        self.last, self.over = end, False

    def begin(self) -> Rising:
        return Rising(self.size, self.end)

    def copy(self) -> Rising:
        return copy.copy(self)

    def fitting(self, tokens: Sequence[int]) -> int:
        place = self.copy()
        for count, token in enumerate(tokens):
            if not place.allowed()[token]:
                return count
            place.accept([token])
        return len(tokens)

    def accept(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            assert self.allowed()[token], "only what fits is accepted"
            self.last, self.over = token, token == self.end

    def forced(self) -> list[int]:
        return [self.end] if self.last == self.size - 1 and not self.over else []

    def allowed(self) -> np.ndarray:
        allowed_V = np.arange(self.size) > self.last
        allowed_V[self.end] = self.last >= FIRST_TO_END
        return allowed_V & (not self.over)


def is_rising(tokens: Sequence[int], room: int, end: int = END) -> bool:
    """Whether an answer of at most `room` tokens fits, as far as it goes."""
    whole = (tokens[-1] == end and tokens[-2] >= FIRST_TO_END) or len(tokens) == room
    body = tokens[:-1] if tokens[-1] == end else tokens
    return whole and all(before < after for before, after in zip((end, *body), body, strict=False))
