"""Experts in blocks of rows that share one expert: for CPUs, where a loop costs nothing.

Only useful arithmetic plus padding, and an expert's weights stay in the cache from one of its blocks to the next. Not
differentiable.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from dgemma_jax.model.mlp import gelu
from dgemma_jax.model.parameter import einsum, slice_axis
from dgemma_jax.model.router import Routing

BLOCK_ROWS = 16


def expert_blocks(x_AD: jax.Array, routing: Routing, gate_up_EFD: jax.Array, down_EDF: jax.Array) -> jax.Array:
    """As `moe.all_experts`, expert by expert in blocks of `BLOCK_ROWS` rows."""
    token_JR, weight_JR, expert_J, count = _blocks(routing, gate_up_EFD.shape[0], BLOCK_ROWS)

    def run_block(block: jax.Array, out_AD: jax.Array) -> jax.Array:
        expert, rows = expert_J[block], token_JR[block]
        x_RD = jnp.take(x_AD, rows, axis=0, mode="fill", fill_value=0)
        gate_RF, up_RF = jnp.split(einsum("rd,fd->rf", x_RD, of_expert(gate_up_EFD, expert)), 2, axis=-1)
        y_RD = einsum("rf,df->rd", gelu(gate_RF) * up_RF, of_expert(down_EDF, expert))
        y_RD = y_RD.astype(jnp.float32) * weight_JR[block][:, None]
        return out_AD.at[rows].add(y_RD, mode="drop")

    out_AD = jax.lax.fori_loop(0, count, run_block, jnp.zeros(x_AD.shape, jnp.float32))
    return out_AD.astype(x_AD.dtype)


def of_expert(weight_EYZ: jax.Array, expert: jax.Array) -> jax.Array:
    """The weight of one expert, which a loop may vary: [Y, Z]."""
    return jax.tree.map(lambda part: slice_axis(part, expert, 1)[0], weight_EYZ)  # a quantised weight has two parts


def _blocks(routing: Routing, E: int, rows: int) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Cuts the assignments, sorted by expert, into blocks of one expert each.

    Returns the token of each row (A where the row is padding), its weight, the expert of each block, and how
    many blocks are in use.
    """
    A, X = routing.expert_AX.shape
    most = (A * X) // rows + min(E, A * X)  # full blocks, and at most one part-filled block an expert
    expert_Z = routing.expert_AX.reshape(-1)
    order_Z = jnp.argsort(expert_Z)  # stable: a token's experts are summed in the same order in any batch
    count_E = jnp.zeros(E, jnp.int32).at[expert_Z].add(1)
    blocks_E = (count_E + rows - 1) // rows
    first_block_E = jnp.cumsum(blocks_E) - blocks_E
    first_row_E = jnp.cumsum(count_E) - count_E
    sorted_expert_Z = expert_Z[order_Z]
    rank_Z = jnp.arange(A * X) - first_row_E[sorted_expert_Z]
    slot_Z = first_block_E[sorted_expert_Z] * rows + rank_Z
    token_J = jnp.full(most * rows, A, jnp.int32).at[slot_Z].set((order_Z // X).astype(jnp.int32))
    weight_J = jnp.zeros(most * rows, jnp.float32).at[slot_Z].set(routing.weight_AX.reshape(-1)[order_Z])
    expert_J = jnp.searchsorted(jnp.cumsum(blocks_E), jnp.arange(most), side="right")
    return token_J.reshape(most, rows), weight_J.reshape(most, rows), expert_J, jnp.sum(blocks_E)
