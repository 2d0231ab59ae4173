"""Wrong answers for training's canvases to start from (`Example.mistake`), and slips that any text may have."""

import re
from collections.abc import Callable
from random import Random
from typing import TypeVar

from dgemma_jax.training.demo.example import Split

T = TypeVar("T")

WITH_MISTAKE = 0.5
"""Of training's examples, in families that know their mistakes, those that come with one."""
LONGEST_PIECE = 3
"""Letters, digits or marks that are written twice or left out."""


def half_of_training(rng: Random, split: Split, right: T, mistake: Callable[[], T]) -> T | None:
    """What `mistake` makes that is not `right` after all, in half of training; the test needs none."""
    if split == "test" or rng.random() >= WITH_MISTAKE:
        return None
    while (made := mistake()) == right:
        pass
    return made


def stumbled(rng: Random, text: str) -> str:
    """A text with a few characters twice or left out."""
    start = rng.randrange(len(text))
    stop = min(len(text), start + rng.randint(1, LONGEST_PIECE))
    if rng.random() < 0.5 and stop - start < len(text):
        return text[:start] + text[stop:]
    return text[:stop] + text[start:]


def slipped(rng: Random, text: str) -> str:
    """A text with a slip or two: a word misspelt or taken for another, a wrong mark, an end twice or missing."""
    for _ in range(rng.choice((1, 1, 2))):
        text = _slip(rng, text)
    return text


def _slip(rng: Random, text: str) -> str:
    kind = rng.random()
    if kind < 0.15 and len(text) > LONGEST_PIECE:
        count = rng.randint(1, LONGEST_PIECE)
        return text[:-count] if rng.random() < 0.4 else text + text[-count:]
    found = list(re.finditer(r"\w+" if kind < 0.65 else r"[^\w\s]+", text))
    if not found:
        return stumbled(rng, text)
    piece, other = rng.choice(found), rng.choice(found).group()
    wrong = stumbled(rng, piece.group()) if other == piece.group() or rng.random() < 0.6 else other
    return text[: piece.start()] + wrong + text[piece.end() :]
