"""Experts by JAX's grouped matrix product for TPUs (megablox): tokens sorted by expert, two products.

The kernel reads the weights as they are published, output axis first, each expert's once for every 128 of its rows.
Only where it is compiled for a TPU is it fast; elsewhere it is interpreted, for tests.
Source: `jax.experimental.pallas.ops.tpu.megablox`, after Gale et al., https://arxiv.org/abs/2211.15841.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from dgemma_jax.model.mlp import gelu
from dgemma_jax.model.moe_buckets import capacity_buckets
from dgemma_jax.model.quantized import Quantized
from dgemma_jax.model.router import Routing

TILING = (128, 512, 512)
"""Rows, inputs and outputs of a tile, at most: the two of a weight in bfloat16, read ahead, take 1 MiB of VMEM."""


def gmm(x_AD: jax.Array, routing: Routing, gate_up_EFD: jax.Array, down_EDF: jax.Array) -> jax.Array:
    """As `moe.all_experts`. Quantised weights, which the kernel cannot read, are left to `capacity_buckets`."""
    if isinstance(gate_up_EFD, Quantized):
        return capacity_buckets(x_AD, routing, gate_up_EFD, down_EDF)
    (A, X), E = routing.expert_AX.shape, gate_up_EFD.shape[0]
    expert_Z = routing.expert_AX.reshape(-1)
    order_Z = jnp.argsort(expert_Z, stable=True)
    # A choice of another device's expert comes last, and is of no group.
    size_E = jnp.zeros(E, jnp.int32).at[expert_Z].add(1, mode="drop")
    missing = -len(expert_Z) % TILING[0]
    sorted_ZD = jnp.pad(x_AD[order_Z // X], ((0, missing), (0, 0)))
    gate_ZF, up_ZF = jnp.split(_product(sorted_ZD, gate_up_EFD, size_E), 2, axis=-1)
    out_ZD = _product(gelu(gate_ZF) * up_ZF, down_EDF, size_E)
    # Rows of no group are never written.
    written_Z1 = (jnp.arange(len(out_ZD)) < jnp.sum(size_E))[:, None]
    out_ZD = jnp.where(written_Z1, out_ZD.astype(jnp.float32), 0)
    place_AX = jnp.argsort(order_Z).reshape(A, X)
    return jnp.sum(out_ZD[place_AX] * routing.weight_AX[..., None], axis=1).astype(x_AD.dtype)


def _product(x_ZK: jax.Array, weight_ENK: jax.Array, size_E: jax.Array) -> jax.Array:
    """Each row times the weight of its group: [Z, N]."""
    from jax.experimental.pallas.ops.tpu import megablox

    # The kernel's own indices are of several ranks, and its products of the precision that is the default.
    exact = "highest" if x_ZK.dtype == jnp.float32 else None
    with jax.numpy_rank_promotion("allow"), jax.default_matmul_precision(exact):
        return megablox.gmm(x_ZK, weight_ENK, size_E, x_ZK.dtype, TILING, transpose_rhs=True, interpret=_interpreted())


def _interpreted() -> bool:
    return jax.default_backend() != "tpu"
