"""A grammar that can be followed by hand: every token is larger than the one before, and an end follows large ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

END = 1
FIRST_TO_END = 30


class Rising:
    """Stands in for `dgemma_jax.grammar.Grammar` and, from `begin` on, for its `Matcher`. Tokens are 0 to 49."""

    def __init__(self, last: int = END, over: bool = False) -> None:
        self.last, self.over = last, over

    def begin(self) -> Rising:
        return Rising()

    def copy(self) -> Rising:
        return Rising(self.last, self.over)

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
            self.last, self.over = token, token == END

    def forced(self) -> list[int]:
        return [END] if self.last == 49 and not self.over else []

    def allowed(self) -> np.ndarray:
        allowed_V = np.arange(50) > self.last
        allowed_V[END] = self.last >= FIRST_TO_END
        return allowed_V & (not self.over)


def is_rising(tokens: Sequence[int], room: int) -> bool:
    """Whether an answer of at most `room` tokens fits, as far as it goes."""
    whole = (tokens[-1] == END and tokens[-2] >= FIRST_TO_END) or len(tokens) == room
    body = tokens[:-1] if tokens[-1] == END else tokens
    return whole and all(before < after for before, after in zip((END, *body), body, strict=False))
