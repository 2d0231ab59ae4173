"""Feeding the previous prediction back into the canvas."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from dgemma_jax.config import TextConfig
from dgemma_jax.model.mlp import GatedMLP
from dgemma_jax.model.norms import RMSNorm, rms_norm


class SelfConditioning(nnx.Module):
    """Adds a gated transform of the previous soft embedding to the canvas embedding, then norms the sum.

    Before the first step there is no prediction: the soft embedding is None, which the reference expresses as
    zeros. The norm of the sum applies in both cases.
    """

    def __init__(self, config: TextConfig, rngs: nnx.Rngs, dtype: jnp.dtype):
        self.pre_norm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype)
        self.mlp = GatedMLP(config.hidden_size, config.intermediate_size, rngs, dtype)
        self.epsilon = config.rms_norm_eps

    def __call__(self, x_BLD: jax.Array, soft_BLD: jax.Array | None) -> jax.Array:
        if soft_BLD is not None:
            x_BLD = x_BLD + self.mlp(self.pre_norm(soft_BLD))
        return rms_norm(x_BLD, None, self.epsilon)
