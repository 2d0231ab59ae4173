"""Rotary positions: one-dimensional for text, two-dimensional for image patches.

Both rotate in halves: dimension j of the first half pairs with dimension j of the second. See
"RoFormer" (arXiv 2104.09864); the proportional form of the full layers rotates only the first quarter of
each half and keeps the exponent's denominator at the whole head size.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dgemma_jax.config import FULL, LayerType, TextConfig


class Rotation(NamedTuple):
    """Cosine and sine of every angle: [..., T, C]."""

    cos: jax.Array
    sin: jax.Array


def text_frequencies(config: TextConfig, layer_type: LayerType) -> np.ndarray:
    """Radians per position for each of C/2 dimension pairs; zero where a full layer does not rotate."""
    size = config.head_size(layer_type)
    if layer_type == FULL:
        theta, pairs = config.full_rope_theta, int(config.full_partial_rotary_factor * size // 2)
    else:
        theta, pairs = config.sliding_rope_theta, size // 2
    rotated = 1.0 / (np.float32(theta) ** (np.arange(0, 2 * pairs, 2, dtype=np.float32) / np.float32(size)))
    return np.concatenate([rotated, np.zeros(size // 2 - pairs, np.float32)]).astype(np.float32)


def rotation(positions: jax.Array, frequencies: np.ndarray, dtype: jnp.dtype) -> Rotation:
    """Angles of integer positions [...] for the two halves of a head: [..., C]."""
    # fp32: bf16 cannot tell position 256 from 257.
    angle = positions[..., None].astype(jnp.float32) * jnp.broadcast_to(
        frequencies, (*positions.shape, len(frequencies))
    )
    turn = Rotation(*(jnp.concatenate([x, x], axis=-1).astype(dtype) for x in (jnp.cos(angle), jnp.sin(angle))))
    # Once for all layers: XLA would compute them again, twice over, in each that turns by them.
    return jax.lax.optimization_barrier(turn)


def rotate(x_BTHC: jax.Array, by: Rotation) -> jax.Array:
    """Turns each head by its position's angles."""
    first, second = jnp.split(x_BTHC, 2, axis=-1)
    turned = jnp.concatenate([-second, first], axis=-1)
    return x_BTHC * by.cos[:, :, None] + turned * by.sin[:, :, None]


def patch_rotation(xy_IN2: jax.Array, head_size: int, theta: float, dtype: jnp.dtype) -> tuple[Rotation, Rotation]:
    """Angles by column (for the first half of a head) and by row (for the second)."""
    half = head_size // 2
    frequencies = 1.0 / (np.float32(theta) ** (np.arange(0, half, 2, dtype=np.float32) / np.float32(half)))
    return rotation(xy_IN2[..., 0], frequencies, dtype), rotation(xy_IN2[..., 1], frequencies, dtype)


def rotate_patches(x_INHC: jax.Array, by: tuple[Rotation, Rotation]) -> jax.Array:
    """Turns the first half of each head by the patch's column, the second by its row."""
    columns, rows = jnp.split(x_INHC, 2, axis=-1)
    return jnp.concatenate([rotate(columns, by[0]), rotate(rows, by[1])], axis=-1)
