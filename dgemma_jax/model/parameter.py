"""Declaring a parameter, once: its sizes, its logical axes, its start value.

    self.q_HCD = weight(rngs, dtype, heads=16, head=256, embed=2816)

The keywords are the logical axes in order, the values their sizes. The checkpoint reader, the byte counts and
the initialiser all read this one declaration. Weights keep the published layout (output axes first), so a
memory-mapped tensor becomes a parameter by a reshape.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from dgemma_jax.model import matrix_parallel
from dgemma_jax.model.quantized import Quantized


def weight(rngs: nnx.Rngs, dtype: jnp.dtype, *, std: float | None = None, **axes: int) -> nnx.Param:
    """A matrix, normal with `std` (default: one over the square root of its last axis, the fan-in)."""
    shape = tuple(axes.values())
    scale = shape[-1] ** -0.5 if std is None else std
    value = (jax.random.normal(rngs.params(), shape, jnp.float32) * scale).astype(dtype)
    return nnx.Param(value, axes=tuple(axes))


def constant(value: float, dtype: jnp.dtype, **axes: int) -> nnx.Param:
    """A vector that starts the same everywhere: norm scales, layer scalars, clipping bounds."""
    return nnx.Param(jnp.full(tuple(axes.values()), value, dtype), axes=tuple(axes))


def slice_axis(x: jax.Array, first: jax.Array, size: int, axis: int = 0) -> jax.Array:
    """`size` entries of an axis from `first` on, which a loop may vary: of a weight, or of a cache."""
    if x.dtype == jnp.bfloat16 and jax.default_backend() == "cpu":
        # XLA's CPU backend may slice bfloat16 by way of float32, and would move the widening of the whole array, which
        # does not depend on the loop, out of it.
        x, first = jax.lax.optimization_barrier((x, first))
    return jax.lax.dynamic_slice_in_dim(x, first, size, axis)


def einsum(formula: str, x: jax.Array, y: jax.Array | Quantized) -> jax.Array:
    """`jnp.einsum` whose float32 is float32: GPUs and TPUs would otherwise round float32 inputs to 10 bits.

    `y` may be a quantised weight.
    """
    if isinstance(y, Quantized):
        return matrix_parallel.einsum(formula, x, y)
    exact = x.dtype == y.dtype == jnp.float32
    return jnp.einsum(formula, x, y, precision=jax.lax.Precision.HIGHEST if exact else None)
