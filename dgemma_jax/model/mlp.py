"""The gated feed-forward block: down(gelu(gate(x)) * up(x))."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from dgemma_jax.model.parameter import apart, einsum, weight


def gelu(x: jax.Array) -> jax.Array:
    """GELU in its tanh form (`gelu_pytorch_tanh`)."""
    return jax.nn.gelu(x, approximate=True)


class GatedMLP(nnx.Module):
    """Dense feed-forward, also the body of the self-conditioning block."""

    def __init__(self, width: int, hidden: int, rngs: nnx.Rngs, dtype: jnp.dtype):
        self.gate_FD = weight(rngs, dtype, mlp=hidden, embed=width)
        self.up_FD = weight(rngs, dtype, mlp=hidden, embed=width)
        self.down_DF = weight(rngs, dtype, embed=width, mlp=hidden)

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        gate_BTF, up_BTF = (apart("btd,fd->btf", x_BTD, part[...]) for part in (self.gate_FD, self.up_FD))
        return einsum("btf,df->btd", gelu(gate_BTF) * up_BTF, self.down_DF[...])
