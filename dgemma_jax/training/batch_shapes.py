"""Choosing the few shapes of batches that a run compiles, by the lengths of its rows."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

from dgemma_jax.training.rows import Bucket

STEP = 16
"""Lengths are multiples of this: rows that differ by less are not worth a program of their own."""

WORTH = 0.05
"""What a further shape must save, as a share of all tokens computed: compiling it takes as long as many batches."""


class RowShape(NamedTuple):
    """What a row asks of a batch: tokens with the fill, canvases, images."""

    length: int
    blocks: int
    images: int


def choose_buckets(shapes: Sequence[RowShape], rows: int, most: int = 4) -> tuple[Bucket, ...]:
    """Batches of `rows` rows that hold every row with the least padding, of at most `most` shapes.

    Rows with different numbers of images never share a batch, so there is at least one shape for each number.
    """
    groups = [sorted(group) for _, group in itertools.groupby(sorted(shapes, key=_images), key=_images)]
    cuts = [_cuts([_rounded(shape.length) for shape in group], most) for group in groups]
    counts = [1] * len(groups)
    worth = WORTH * sum(cut[0].cost for cut in cuts)
    while sum(counts) < most:
        gains = [cut[n - 1].cost - cut[min(n, most - 1)].cost for cut, n in zip(cuts, counts, strict=True)]
        if max(gains) < worth:
            break
        counts[gains.index(max(gains))] += 1
    return tuple(
        Bucket(_rounded(group[end - 1].length), max(shape.blocks for shape in group[start:end]), rows, group[0].images)
        for group, cut, count in zip(groups, cuts, counts, strict=True)
        for start, end in itertools.pairwise((0, *cut[count - 1].ends))
    )


class _Cut(NamedTuple):
    """Where the parts of a sorted group end, and the tokens that batches of these parts compute, padding included."""

    cost: int
    ends: tuple[int, ...]


def _cuts(lengths: Sequence[int], most: int) -> list[_Cut]:
    """The cheapest cut into at most 1, 2, ... `most` parts."""
    ends = [end for end in range(1, len(lengths) + 1) if end == len(lengths) or lengths[end] > lengths[end - 1]]
    best = [{end: _Cut(end * lengths[end - 1], (end,)) for end in ends}]
    for _ in range(1, most):
        last = best[-1]
        best.append({end: min([last[end], *_longer(last, end, lengths[end - 1])]) for end in ends})
    return [cuts[len(lengths)] for cuts in best]


def _longer(cuts: dict[int, _Cut], end: int, length: int) -> list[_Cut]:
    """One part more behind each shorter cut, up to `end`."""
    return [_Cut(cut.cost + (end - at) * length, (*cut.ends, end)) for at, cut in cuts.items() if at < end]


def _images(shape: RowShape) -> int:
    return shape.images


def _rounded(length: int) -> int:
    return -(-length // STEP) * STEP
