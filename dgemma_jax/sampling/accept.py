"""Which canvas positions keep their drawn token: the entropy bound."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def accept(entropy_BL: jax.Array, bound_B: jax.Array) -> jax.Array:
    """True for the surest positions whose summed entropy, less the largest of them, stays within the bound (nats).

    The sum bounds the mutual information between the accepted tokens (arXiv 2505.24857): within it they can be
    drawn independently. The surest position is always accepted; ties go to the earlier position.
    """
    order_BL = jnp.argsort(entropy_BL, axis=-1)
    sorted_BL = jnp.take_along_axis(entropy_BL, order_BL, axis=-1)
    within_BL = jnp.cumsum(sorted_BL, axis=-1) - sorted_BL <= bound_B[:, None]
    return jnp.take_along_axis(within_BL, jnp.argsort(order_BL, axis=-1), axis=-1)
