"""Which tokens may be drawn: top-k and top-p.

Both keep all tokens that are at least as likely as some least probability, so that one is found by bisection and the
vocabulary is never sorted. Tokens of equal probability are kept or dropped together: the choice depends on nothing
but the probabilities.

Source: transformers' `TopKLogitsWarper`, then `TopPLogitsWarper`. Ties at the edge stay in, as in the former.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from dgemma_jax.sampling.options import SamplingOptions


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Truncation:
    """Bounds of each row: `top_k_B` int, 0 is off; `top_p_B` float, 1 is off."""

    top_k_B: jax.Array
    top_p_B: jax.Array

    @classmethod
    def of(cls, rows: Sequence[SamplingOptions]) -> Truncation | None:
        """The bounds of rows; None where no row has any: a program without them does no work for them."""
        if not any(options.truncates for options in rows):
            return None
        most = np.iinfo(np.int32).max
        return cls(
            top_k_B=jnp.asarray([min(options.top_k, most) for options in rows], jnp.int32),
            top_p_B=jnp.asarray([options.top_p for options in rows], jnp.float32),
        )


def truncate(probability_BLV: jax.Array, truncation: Truncation) -> jax.Array:
    """Zero where a token may not be drawn, else as it was: [B, L, V], not normalised. The likeliest always stays.

    top-p counts what top-k leaves as the whole. A row whose bounds are off stays as it was, bit for bit.
    """
    # Floats that are not negative are ordered as their bits, and bits can be bisected to the last.
    bits_BLV = jax.lax.bitcast_convert_type(probability_BLV, jnp.int32)
    largest_BL = jnp.max(bits_BLV, axis=-1)

    def mass(least_BL: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(bits_BLV >= least_BL[..., None], probability_BLV, 0), axis=-1)

    def enough(least_BL: jax.Array) -> jax.Array:
        return jnp.sum(bits_BLV >= least_BL[..., None], axis=-1, dtype=jnp.int32) >= truncation.top_k_B[:, None]

    least_BL = jnp.zeros_like(largest_BL)
    least_BL = _highest(enough, least_BL, jnp.where(truncation.top_k_B[:, None] > 0, largest_BL, least_BL))
    wanted_BL = truncation.top_p_B[:, None] * mass(least_BL)
    # Off is a case of its own: the rounded sum reaches the whole before the rarest tokens are in it.
    highest_BL = jnp.where(truncation.top_p_B[:, None] < 1, largest_BL, least_BL)
    least_BL = _highest(lambda tried_BL: mass(tried_BL) >= wanted_BL, least_BL, highest_BL)
    return jnp.where(bits_BLV >= least_BL[..., None], probability_BLV, 0)


def _highest(holds: Callable[[jax.Array], jax.Array], low_BL: jax.Array, high_BL: jax.Array) -> jax.Array:
    """The highest integer of low to high at which `holds` does, or low. Where it fails, it fails above too."""

    def narrow(bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low_BL, high_BL = bounds
        middle_BL = high_BL - (high_BL - low_BL) // 2
        holds_BL = holds(middle_BL)
        return jnp.where(holds_BL, middle_BL, low_BL), jnp.where(holds_BL, high_BL, middle_BL - 1)

    return jax.lax.while_loop(lambda bounds: jnp.any(bounds[0] < bounds[1]), narrow, (low_BL, high_BL))[0]
