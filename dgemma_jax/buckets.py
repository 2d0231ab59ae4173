"""Which sizes programs are compiled for. Few of them: a compilation costs seconds, some padding microseconds."""

from __future__ import annotations

import numpy as np

PREFILL_CHUNK = 1024
PREFILL_BUCKETS = (128, 512, PREFILL_CHUNK)
SMALLEST_CAPACITY = 512
CAPACITY_STEP = 4


def prefill_bucket(length: int, canvas_length: int) -> int:
    """The padded length of a pass over `length` prompt tokens. A canvas is committed without padding."""
    fitting = [size for size in sorted((canvas_length, *PREFILL_BUCKETS)) if size >= length]
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
