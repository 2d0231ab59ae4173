"""Which sizes programs are compiled for. Few of them: a compilation costs seconds, some padding microseconds."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

PREFILL_CHUNK = 1024
CPU_CHUNK = 128
PREFILL_BUCKETS = (128, 512, PREFILL_CHUNK)
SMALLEST_CAPACITY = 512
CAPACITY_STEP = 4
SOFT_TOKEN_BUCKETS = (16, 70, 140, 280, 560, 1120)
MOST_PATCHES = 16384
"""Patches that go through the vision tower at once; the attention of large images takes gigabytes."""


def prefill_chunk(canvas_length: int, platform: str) -> int:
    """Tokens of one pass over a prompt at most; what runs beside it waits for one pass at a time.

    On a CPU as many as a canvas has, so that a pass takes about as long as a step, and at least `CPU_CHUNK`: long
    passes are slower there, token for token, because their scores and hidden states leave the cache.
    """
    return max(CPU_CHUNK, canvas_length) if platform == "cpu" else PREFILL_CHUNK


def prefill_sizes(canvas_length: int) -> list[int]:
    """The lengths of passes that programs are compiled for, shortest first.

    Two canvases are one: a model with short canvases answers short questions, and half of a pass would be padding.
    """
    return sorted({canvas_length, 2 * canvas_length, *PREFILL_BUCKETS})


def short_prompt(canvas_length: int) -> int:
    """Tokens of a prompt that may be read in one pass with others: of the smallest capacity, and at most two canvases.

    So few programs are compiled for such passes, and what runs beside them does not wait long.
    """
    return min(2 * canvas_length, SMALLEST_CAPACITY - canvas_length)


def prefill_bucket(length: int, canvas_length: int) -> int:
    """The padded length of a pass over `length` prompt tokens. A canvas is committed without padding."""
    fitting = [size for size in prefill_sizes(canvas_length) if size >= length]
    # Past the largest: an image longer than a chunk, which is never cut, or a long commit.
    return fitting[0] if fitting else 1 << (length - 1).bit_length()


def capacity_bucket(needed: int, positions: int) -> int:
    """The cache capacity for `needed` tokens, at most the model's positions."""
    size = SMALLEST_CAPACITY
    while size < needed:
        size *= CAPACITY_STEP
    return min(size, max(positions, needed))


def chunks(length: int, most: int, soft_BT: np.ndarray | None) -> list[tuple[int, int]]:
    """Cuts a prompt into spans of at most `most` tokens, never inside an image: a longer image is one span."""
    inside = np.zeros(length + 1, bool)  # inside[i]: a cut before token i would split an image in some row
    if soft_BT is not None:
        inside[1:length] = np.any(soft_BT[:, 1:] & soft_BT[:, :-1], axis=0)
    cuts = np.flatnonzero(~inside)
    spans, start = [], 0
    while start < length:
        fitting = cuts[(cuts > start) & (cuts <= start + most)]
        end = int(fitting[-1]) if len(fitting) else int(cuts[cuts > start][0])
        spans.append((start, end))
        start = end
    return spans


def patch_bucket(patches: int, per_soft_token: int) -> int:
    """The padded number of patches of an image of so many."""
    fitting = [size * per_soft_token for size in SOFT_TOKEN_BUCKETS if size * per_soft_token >= patches]
    return fitting[0] if fitting else patches


class ImageGroup(NamedTuple):
    """Images that go through the vision tower together: from `start` to `end`, padded to `images` of `patches` each."""

    start: int
    end: int
    images: int
    patches: int


def image_groups(patches: Iterable[int], per_soft_token: int) -> list[ImageGroup]:
    """Cuts the images of a prompt, of so many patches each, into groups of neighbours that are padded alike.

    A group is for as many images as came before it, 1, 1, 2, 4, ..., so its size does not depend on those that come
    after: an image rounds as in an earlier prompt, which ended with it and may be cached.
    """
    groups, start = [], 0
    for size, run in itertools.groupby(patch_bucket(count, per_soft_token) for count in patches):
        most = 1 << (max(MOST_PATCHES // size, 1).bit_length() - 1)
        stop, first, together = start + len(list(run)), start, 1
        while first < stop:
            groups.append(ImageGroup(first, min(first + together, stop), together, size))
            first += together
            together = min(first - start, most)
        start = stop
    return groups
