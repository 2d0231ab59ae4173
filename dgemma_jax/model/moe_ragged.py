"""Experts by `jax.lax.ragged_dot`: only where the compiler has a grouped kernel for it.

Without one XLA expands it to all experts with a masked copy of the activations per expert: 16 times the arithmetic
of the chosen ones for the 26B, and a gigabyte of temporaries a layer. On NVIDIA the kernel is cuDNN's (9.22 or later),
behind `XLA_FLAGS=--xla_gpu_experimental_use_ragged_dot_fusion=true`, off by default; look for its custom call in the
compiled module before trusting it. On CPU there is none. So nothing chooses this backend: it must be named.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from dgemma_jax.model.mlp import gelu
from dgemma_jax.model.quantized import Quantized
from dgemma_jax.model.router import Routing


def ragged_dot(x_AD: jax.Array, routing: Routing, gate_up_EFD: jax.Array, down_EDF: jax.Array) -> jax.Array:
    """As `moe.all_experts`: tokens sorted by expert, two ragged products. Raises ValueError for quantised weights."""
    if isinstance(gate_up_EFD, Quantized):
        raise ValueError("the backend ragged_dot needs full weights, found quantised ones; choose another backend")
    X, E = routing.expert_AX.shape[1], gate_up_EFD.shape[0]
    expert_Z = routing.expert_AX.reshape(-1)
    order_Z = jnp.argsort(expert_Z)
    size_E = jnp.zeros(E, jnp.int32).at[expert_Z].add(1)
    exact = jax.lax.Precision.HIGHEST if x_AD.dtype == jnp.float32 else None
    gate_up_ZF = jax.lax.ragged_dot(x_AD[order_Z // X], jnp.swapaxes(gate_up_EFD, 1, 2), size_E, precision=exact)
    gate_ZF, up_ZF = jnp.split(gate_up_ZF, 2, axis=-1)
    y_ZD = jax.lax.ragged_dot(gelu(gate_ZF) * up_ZF, jnp.swapaxes(down_EDF, 1, 2), size_E, precision=exact)
    weighted_ZD = y_ZD.astype(jnp.float32) * routing.weight_AX.reshape(-1)[order_Z][:, None]
    return jnp.zeros(x_AD.shape, jnp.float32).at[order_Z // X].add(weighted_ZD).astype(x_AD.dtype)
