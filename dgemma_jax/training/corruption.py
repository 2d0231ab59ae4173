"""Noise: every canvas token is replaced, with the canvas's probability t, by any token of the vocabulary."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def noise_levels(key: jax.Array, shape: tuple[int, ...], t_min: float) -> jax.Array:
    """Probabilities t in [t_min, 1), spread evenly: each of the n draws falls in its own n-th of the range."""
    count = 1
    for size in shape:
        count *= size
    jitter, order = jax.random.split(key)
    strata = jax.random.permutation(order, count) + jax.random.uniform(jitter, (count,))
    return (t_min + (1 - t_min) * strata / count).reshape(shape)


def corrupt(key: jax.Array, tokens_BR: jax.Array, t_BR: jax.Array, vocab_size: int) -> jax.Array:
    """Noisy tokens. A replacement may by chance be the token itself, as in the reference's uniform kernel."""
    choose, replace = jax.random.split(key)
    noise_BR = jax.random.randint(replace, tokens_BR.shape, 0, vocab_size, tokens_BR.dtype)
    return jnp.where(jax.random.uniform(choose, tokens_BR.shape) < t_BR, noise_BR, tokens_BR)
