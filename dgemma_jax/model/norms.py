"""Root-mean-square norms."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from dgemma_jax.model.parameter import constant


def rms_norm(x: jax.Array, scale: jax.Array | None, epsilon: float) -> jax.Array:
    """x / rms(x) over the last axis, times `scale` (as it is, not 1 + scale) where there is one."""
    # fp32: the reference normalises and scales in fp32 and rounds once, at the end.
    x32 = x.astype(jnp.float32)
    # power(-0.5) rather than rsqrt: what the reference computes, to the last bit.
    y = x32 * jnp.power(jnp.mean(x32 * x32, axis=-1, keepdims=True) + epsilon, -0.5)
    if scale is not None:
        y = y * jnp.expand_dims(scale.astype(jnp.float32), tuple(range(x.ndim - 1)))
    return y.astype(x.dtype)


class RMSNorm(nnx.Module):
    """A norm with a learned scale."""

    def __init__(self, size: int, epsilon: float, dtype: jnp.dtype, *, axis: str = "embed", start: float = 1.0):
        self.scale = constant(start, dtype, **{axis: size})
        self.epsilon = epsilon

    def __call__(self, x: jax.Array) -> jax.Array:
        return rms_norm(x, self.scale[...], self.epsilon)
