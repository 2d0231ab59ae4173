"""Noise: every canvas token is replaced, with the canvas's probability t, by any token of the vocabulary.

Beyond the published recipe, the end of a canvas may first be moved a little (`shift_ends`).
"""

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


MOST_SHIFTED = 3
"""Places by which `shift_ends` moves the end of a canvas, at most."""


def shift_ends(key: jax.Array, tokens_BCL: jax.Array, filled_BC: jax.Array, share: float) -> jax.Array:
    """A share of the canvases with all tokens from some place on up to three places too late or too early.

    The tokens before the place are then there twice, or those behind it are missing: the mistakes of a model that
    writes all places at once. filled_BC: the tokens before the fill of each canvas; the place is one of theirs.
    """
    keys = jax.random.split(key, 4)
    B, C, L = tokens_BCL.shape
    start_BC = jnp.floor(jax.random.uniform(keys[0], (B, C)) * filled_BC)
    by_BC = jax.random.randint(keys[1], (B, C), 1, MOST_SHIFTED + 1)
    by_BC = jnp.where(jax.random.bernoulli(keys[2], shape=(B, C)), by_BC, -by_BC)
    by_BC = jnp.where(jax.random.uniform(keys[3], (B, C)) < share, by_BC, 0)
    place_11L = jnp.arange(L)[None, None]
    source_BCL = place_11L - jnp.where(place_11L >= start_BC[..., None], by_BC[..., None], 0)
    return jnp.take_along_axis(tokens_BCL, jnp.clip(source_BCL, 0, L - 1), axis=2)
