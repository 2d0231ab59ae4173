"""The mixture of experts: one function, exact backends behind it.

    all_experts     every token through every expert, unchosen ones weighted zero. No control flow, differentiable;
                    E/X times the useful arithmetic. The plain twin of the others.
    expert_blocks   tokens sorted by expert and run in blocks of rows that share one expert. Only useful
                    arithmetic plus padding; for CPU, where a loop costs nothing. Not differentiable.

`jax.lax.ragged_dot` is not among them: on CPU, and on NVIDIA unless a flag is set, it expands to all experts
with a masked copy of the activations per expert.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from dgemma_jax.config import TextConfig
from dgemma_jax.model.mlp import gelu
from dgemma_jax.model.parameter import einsum, weight
from dgemma_jax.model.router import Routing

BLOCK_ROWS = 16
ExpertFunction = Callable[[jax.Array, Routing, jax.Array, jax.Array], jax.Array]


def all_experts(x_AD: jax.Array, routing: Routing, gate_up_EFD: jax.Array, down_EDF: jax.Array) -> jax.Array:
    """Weighted sum over the chosen experts of each token: [A, D]. Gate rows come first in `gate_up_EFD`."""
    A, E = x_AD.shape[0], gate_up_EFD.shape[0]
    weight_AE = jnp.zeros((A, E), jnp.float32).at[jnp.arange(A)[:, None], routing.expert_AX].set(routing.weight_AX)
    D, F = down_EDF.shape[1:]
    # Plain matrix products: XLA's CPU backend sums products over two axes in another order for few rows than for many,
    # and a canvas must not notice that others are in the batch.
    gate_up_AEF = einsum("ad,yd->ay", x_AD, gate_up_EFD.reshape(-1, D)).reshape(A, E, 2 * F)
    gate_AEF, up_AEF = jnp.split(gate_up_AEF, 2, axis=-1)
    hidden_AEF = (gelu(gate_AEF) * up_AEF).astype(jnp.float32) * weight_AE[..., None]
    down_DY = jnp.swapaxes(down_EDF, 0, 1).reshape(D, -1)
    return einsum("ay,dy->ad", hidden_AEF.astype(x_AD.dtype).reshape(A, -1), down_DY)


def expert_blocks(x_AD: jax.Array, routing: Routing, gate_up_EFD: jax.Array, down_EDF: jax.Array) -> jax.Array:
    """The same sum, expert by expert in blocks of `BLOCK_ROWS` rows."""
    token_JR, weight_JR, expert_J, count = _blocks(routing, gate_up_EFD.shape[0], BLOCK_ROWS)

    def run_block(block: jax.Array, out_AD: jax.Array) -> jax.Array:
        expert, rows = expert_J[block], token_JR[block]
        x_RD = jnp.take(x_AD, rows, axis=0, mode="fill", fill_value=0)
        gate_RF, up_RF = jnp.split(einsum("rd,fd->rf", x_RD, gate_up_EFD[expert]), 2, axis=-1)
        y_RD = einsum("rf,df->rd", gelu(gate_RF) * up_RF, down_EDF[expert])
        y_RD = y_RD.astype(jnp.float32) * weight_JR[block][:, None]
        return out_AD.at[rows].add(y_RD, mode="drop")

    out_AD = jax.lax.fori_loop(0, count, run_block, jnp.zeros(x_AD.shape, jnp.float32))
    return out_AD.astype(x_AD.dtype)


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


BACKENDS: dict[str, ExpertFunction] = {"all_experts": all_experts, "expert_blocks": expert_blocks}


def choose_backend(config: TextConfig, platform: str) -> str:
    """The backend for a device: blocks on a CPU where all experts would cost much more than the chosen ones."""
    wasteful = config.num_experts > 4 * config.top_k_experts
    return "expert_blocks" if platform == "cpu" and wasteful else "all_experts"


class Experts(nnx.Module):
    """The experts' weights, in the published layout, which is also the layout the matrix products read."""

    def __init__(self, config: TextConfig, rngs: nnx.Rngs, dtype: jnp.dtype, backend: str):
        experts, hidden, width = config.num_experts, config.moe_intermediate_size, config.hidden_size
        self.gate_up_EFD = weight(rngs, dtype, experts=experts, expert_mlp=2 * hidden, embed=width)
        self.down_EDF = weight(rngs, dtype, experts=experts, embed=width, expert_mlp=hidden)
        self.backend = backend

    def __call__(self, x_AD: jax.Array, routing: Routing) -> jax.Array:
        return BACKENDS[self.backend](x_AD, routing, self.gate_up_EFD[...], self.down_EDF[...])
