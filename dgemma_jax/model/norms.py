"""Root-mean-square norms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from dgemma_jax.model import gpu
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


def run_as_kernels(x: jax.Array, mesh: Mesh | None) -> bool:
    """Whether norms of this run together with what is around them, as one kernel; see `head_norms` and `residual`.

    On one device: a mesh cuts rows over devices, which a kernel cannot be told.
    """
    return mesh is None and x.dtype == jnp.bfloat16 and gpu.runs_kernels()


def with_gradient_of(plain: Callable[..., Any], kernel: Callable[..., Any]) -> Callable[..., Any]:
    """`kernel`, which has no gradient, with that of its plain twin: both are functions of arrays alone."""
    run = jax.custom_vjp(kernel)
    run.defvjp(lambda *arrays: (kernel(*arrays), arrays), lambda arrays, out: jax.vjp(plain, *arrays)[1](out))
    return run
