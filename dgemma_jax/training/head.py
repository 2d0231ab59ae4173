"""The vocabulary in training: losses and soft embeddings from hidden states, a slice of the positions at a time.

Float32 logits of all positions would be the largest value by far (1 GB for 1024 tokens of the 26B). Each slice makes
its own and throws them away; the backward pass makes them again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp

from dgemma_jax.model.text import TextModel
from dgemma_jax.sampling.head import soft_embedding

MOST_LOGITS = 2**25
"""Numbers in the logits of one slice: 128 MB of float32; 128 tokens of the 26B."""

T = TypeVar("T")


def token_losses(text: TextModel, x_BTD: jax.Array, target_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy in nats of each target, and whether it is the likeliest token: float32 [B, T] both."""

    def losses(x_BSD: jax.Array, target_BS: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits_BSV = text.logits(x_BSD)
        log_BSV = jax.nn.log_softmax(logits_BSV, axis=-1)
        nll_BS = -jnp.take_along_axis(log_BSV, target_BS[..., None], axis=-1)[..., 0]
        return nll_BS, (jnp.argmax(logits_BSV, -1) == target_BS).astype(jnp.float32)

    return _sliced(losses, text.config.vocab_size, x_BTD, target_BT)


def soft_embeddings(text: TextModel, x_BTD: jax.Array) -> jax.Array:
    """What self-conditioning reads of a prediction given as hidden states: [B, T, D]."""
    return _sliced(lambda x_BSD: soft_embedding(text, text.logits(x_BSD)), text.config.vocab_size, x_BTD)


def _sliced(function: Callable[..., T], vocab_size: int, *values: jax.Array) -> T:
    """`function` over slices of axis 1, so that none makes more than `MOST_LOGITS` logits."""
    rows, length = values[0].shape[:2]
    count = min(length, -(-rows * length * vocab_size // MOST_LOGITS))
    if count == 1:
        return function(*values)
    size = -(-length // count)
    padded = [jnp.pad(x, ((0, 0), (0, count * size - length), *((0, 0),) * (x.ndim - 2))) for x in values]
    # Slices go first; the rows stay whole, as they may be spread over devices.
    sliced = [jnp.moveaxis(x.reshape(rows, count, size, *x.shape[2:]), 1, 0) for x in padded]
    results = jax.lax.map(lambda args: jax.checkpoint(function)(*args), tuple(sliced))

    def whole(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(x, 0, 1).reshape(rows, count * size, *x.shape[3:])[:, :length]

    return jax.tree.map(whole, results)
