"""Which sizes programs are compiled for. Few of them: a compilation costs seconds, some padding microseconds."""

from __future__ import annotations

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
    """The padded number of patches of every image of a prompt."""
    fitting = [size * per_soft_token for size in SOFT_TOKEN_BUCKETS if size * per_soft_token >= patches]
    return fitting[0] if fitting else patches


def image_groups(images: int, patches: int) -> list[tuple[int, int, int]]:
    """Cuts the images of a prompt, of so many patches each, into groups: first, end, and padded number of images."""
    most = 1 << (max(MOST_PATCHES // patches, 1).bit_length() - 1)
    starts = range(0, images, most)
    return [(start, min(start + most, images), min(most, 1 << (images - start - 1).bit_length())) for start in starts]
