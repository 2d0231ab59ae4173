"""Passes over the vocabulary for many positions, a slice of the positions at a time.

Float32 logits of all positions would be the largest value by far (1 GB for 1024 tokens of the 26B). Each slice makes
its own and throws them away.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp

MOST_LOGITS = 2**25
"""Numbers in the logits of one slice: 128 MB of float32; 128 tokens of the 26B."""

T = TypeVar("T")


def sliced(
    function: Callable[..., T], vocab_size: int, *values: jax.Array, most: int = MOST_LOGITS, remat: bool = False
) -> T:
    """`function` over slices of axis 1 of the values, so that none makes more than `most` logits.

    Its results must have the positions on axis 1 too. `remat`: a backward pass makes the logits of a slice again.
    """
    rows, length = values[0].shape[:2]
    count = min(length, -(-rows * length * vocab_size // most))
    if count == 1:
        return function(*values)
    size = -(-length // count)
    padded = [jnp.pad(x, ((0, 0), (0, count * size - length), *((0, 0),) * (x.ndim - 2))) for x in values]
    # Slices go first; the rows stay whole, as they may be spread over devices.
    slices = [jnp.moveaxis(x.reshape(rows, count, size, *x.shape[2:]), 1, 0) for x in padded]
    run = jax.checkpoint(function) if remat else function
    results = jax.lax.map(lambda arguments: run(*arguments), tuple(slices))

    def whole(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(x, 0, 1).reshape(rows, count * size, *x.shape[3:])[:, :length]

    return jax.tree.map(whole, results)
