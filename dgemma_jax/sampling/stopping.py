"""When a canvas stops: the prediction is stable and confident."""

from __future__ import annotations

import jax
import jax.numpy as jnp

NEVER = -1  # no token id: a history entry that equals no prediction


def start_history(rows: int, stability_threshold: int, canvas_length: int) -> jax.Array:
    """The predictions of the last `stability_threshold` steps, before there are any: [B, steps, L]."""
    return jnp.full((rows, stability_threshold, canvas_length), NEVER, jnp.int32)


def should_stop(
    argmax_BL: jax.Array, entropy_BL: jax.Array, history_BUL: jax.Array, confidence_threshold_B: jax.Array
) -> jax.Array:
    """True where the prediction equals every one in the history and its mean entropy (nats) is below the threshold."""
    stable_B = jnp.all(history_BUL == argmax_BL[:, None], axis=(1, 2))
    return stable_B & (jnp.mean(entropy_BL, axis=-1) < confidence_threshold_B)


def remember(argmax_BL: jax.Array, history_BUL: jax.Array) -> jax.Array:
    """The history with the newest prediction last and the oldest gone."""
    return jnp.concatenate([history_BUL, argmax_BL[:, None]], axis=1)[:, 1:]
