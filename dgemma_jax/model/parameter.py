"""Declaring a parameter, once: its sizes, its logical axes, its start value.

    self.q_HCD = weight(rngs, dtype, heads=16, head=256, embed=2816)

The keywords are the logical axes in order, the values their sizes. The checkpoint reader, the byte counts and
the initialiser all read this one declaration. Weights keep the published layout (output axes first), so a
memory-mapped tensor becomes a parameter by a reshape.
"""

from __future__ import annotations

import functools
import math

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


def apart(formula: str, x: jax.Array, y: jax.Array | Quantized) -> jax.Array:
    """As `einsum`, for one of several products of the same `x`.

    On GPUs XLA would make one product of them all, and put full weights side by side first: at every step.
    """
    if jax.default_backend() == "gpu" and not isinstance(y, Quantized):
        x, y = jax.lax.optimization_barrier((x, y))
    return einsum(formula, x, y)


def einsum(formula: str, x: jax.Array, y: jax.Array | Quantized) -> jax.Array:
    """`jnp.einsum` whose float32 is float32: GPUs and TPUs would otherwise round float32 inputs to 10 bits.

    `y` may be a quantised weight. Of a full one with several axes of outputs or inputs the product is that with the one
    matrix that it is in memory: XLA's CPU backend would copy it into another order first, at every call.
    """
    if isinstance(y, Quantized):
        return matrix_parallel.einsum(formula, x, y)
    exact = jax.lax.Precision.HIGHEST if x.dtype == y.dtype == jnp.float32 else None
    summed = _summed_at_the_end(formula)
    if summed and y.ndim > 2:
        outputs, Z = y.shape[: y.ndim - summed], math.prod(y.shape[y.ndim - summed :])
        flat = x.reshape(*x.shape[: x.ndim - summed], Z)
        made = jnp.einsum("...z,yz->...y", flat, y.reshape(-1, Z), precision=exact)
        return made.reshape(*flat.shape[:-1], *outputs)
    return jnp.einsum(formula, x, y, precision=exact)


@functools.cache
def _summed_at_the_end(formula: str) -> int:
    """Axes summed over, where they are the last of both and the rest follow each other; 0 for other products."""
    inputs, out = formula.split("->")
    left, right = inputs.split(",")
    summed = "".join(axis for axis in right if axis not in out)
    plain = left.endswith(summed) and right.endswith(summed)
    return len(summed) if plain and out == left.removesuffix(summed) + right.removesuffix(summed) else 0
