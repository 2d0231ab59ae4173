"""Holding an answer to a grammar although its canvases are not written from left to right.

A canvas is denoised as ever. Of what comes out, as many tokens as fit the grammar are settled; so is the one after
them: the likeliest that is allowed there; and those that then must follow. If the rest of the canvas fits behind them
it is done; if not, it is denoised again around what is settled. Each time more is settled, and after `MOST_TRIES` much
more: `MOST_FILLED` tokens, each the likeliest that is allowed after those before. So every canvas comes to an end, and
no other one waits for a whole canvas of choices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from dgemma_jax.generate import cut
from dgemma_jax.grammar import Grammar, GrammarError, Matcher

MOST_TRIES = 8
"""How often a canvas is denoised again for one token. A model that has the format in mind needs one or two."""
MOST_FILLED = 16
"""Tokens that are then chosen in one go. Each costs a pass over the vocabulary: so many, about a denoising step."""

Choose = Callable[[int, np.ndarray], int]
"""The likeliest of the allowed tokens (bool [V]) at a position of the canvas."""


class Verdict(NamedTuple):
    """The tokens settled so far, from the canvas's beginning, and whether that is all of the canvas that counts."""

    tokens: list[int]
    whole: bool


class Guide:
    """One answer's way through its grammar."""

    def __init__(self, grammar: Grammar, canvas_length: int, end_ids: Sequence[int]) -> None:
        self._matcher = grammar.begin()
        self._length = canvas_length
        self._end_ids = end_ids
        self._tries = 0

    def begin(self) -> list[int]:
        """What the next canvas must begin with. Raises GrammarError, as `judge`."""
        self._tries = 0
        return self._matcher.forced()[: self._length]

    def judge(self, canvas_L: np.ndarray, room: int, choose: Choose) -> Verdict:
        """What to do with a canvas, of which `room` tokens count at most. Whole ones are behind us then.

        Raises:
            GrammarError: the grammar turns out to be too large.
        """
        verdict = self._settle(canvas_L, room, choose)
        if verdict.whole:
            self._matcher.accept(verdict.tokens)
        self._tries += 1
        return verdict

    def _settle(self, canvas_L: np.ndarray, room: int, choose: Choose) -> Verdict:
        settled: list[int] = []
        filled, most_filled = 0, 1 if self._tries < MOST_TRIES else MOST_FILLED
        place = self._matcher.copy()
        room = min(room, self._length)
        while len(settled) < room and not (settled and settled[-1] in self._end_ids):
            rest = cut(canvas_L[len(settled) :], room - len(settled), self._end_ids)
            fits = place.fitting(rest)
            if fits < len(rest) and filled == most_filled:
                return Verdict(settled, False)
            place.accept(rest[:fits])
            settled += rest[:fits]
            if fits < len(rest):
                settled += self._next(place, len(settled), choose)
                filled += 1
        return Verdict(settled[:room], True)

    def _next(self, place: Matcher, position: int, choose: Choose) -> list[int]:
        """The token that replaces one that does not fit, and those that must follow it."""
        allowed_V = place.allowed()
        if not allowed_V.any():
            raise GrammarError("the grammar allows nothing after what was written")
        token = choose(position, allowed_V)
        place.accept([token])
        tokens = [token] if token in self._end_ids else [token, *place.forced()]
        place.accept(tokens[1:])
        return tokens
