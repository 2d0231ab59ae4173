"""The mixture of experts: one function, exact backends behind it.

    all_experts       every token through every expert, unchosen ones weighted zero: two dense products. No control
                      flow, differentiable; E/X times the useful arithmetic. The plain twin of the others. See
                      `moe_all.py`.
    expert_blocks     a loop over blocks of rows that share one expert; for CPUs. See `moe_blocks.py`.
    grouped_blocks    two kernels that read each expert's weights once, quantised ones as they lie; for NVIDIA GPUs.
                      See `moe_grouped.py`.
    capacity_buckets  a batched product with room for the busiest expert; for GPUs where blocks cannot be cut, and for
                      quantised weights on TPUs. See `moe_buckets.py`.
    gmm               JAX's grouped kernel; for TPUs. See `moe_gmm.py`.
    ragged_dot        only by name, where the compiler has a grouped kernel. See `moe_ragged.py`.

Weights are stored once, in the published layout, which is also the layout the products read; the per-expert scale is
part of the routing weight.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from dgemma_jax.config import TextConfig
from dgemma_jax.model.expert_parallel import ExpertFunction, over_mesh
from dgemma_jax.model.moe_all import all_experts
from dgemma_jax.model.moe_blocks import expert_blocks
from dgemma_jax.model.moe_buckets import capacity_buckets
from dgemma_jax.model.moe_gmm import gmm
from dgemma_jax.model.moe_grouped import grouped_blocks, supports
from dgemma_jax.model.moe_ragged import ragged_dot
from dgemma_jax.model.parameter import weight
from dgemma_jax.model.router import Routing

BACKENDS: dict[str, ExpertFunction] = {
    "all_experts": all_experts,
    "expert_blocks": expert_blocks,
    "capacity_buckets": capacity_buckets,
    "grouped_blocks": grouped_blocks,
    "gmm": gmm,
    "ragged_dot": ragged_dot,
}


def choose_backend(config: TextConfig, platform: str, *, quantized: bool = False, kernels: bool = True) -> str:
    """The backend for a device ("cpu", "gpu", ...): all experts unless that costs much more than the chosen ones.

    Blocks on a GPU that runs the `kernels`, where sizes are multiples of 32. Buckets read weights of one canvas as
    fast, but the host waits for the choice of every layer's capacity, and tokens are gathered into room for the
    busiest expert.
    """
    if config.num_experts <= 4 * config.top_k_experts:
        return "all_experts"
    if platform == "cpu":
        return "expert_blocks"
    if platform == "tpu" and not quantized:
        return "gmm"
    blocks = platform == "gpu" and kernels and supports(config.moe_intermediate_size, config.hidden_size)
    return "grouped_blocks" if blocks else "capacity_buckets"


def runs_as(backend: str, *, quantized: bool) -> str:
    """The backend that does the work where one is chosen or named: TPU kernels leave quantised weights to buckets."""
    return "capacity_buckets" if backend == "gmm" and quantized else backend


class Experts(nnx.Module):
    """The experts' weights, in the published layout, which is also the layout the matrix products read."""

    mesh: Mesh | None = None  # see `sharding.spread`

    def __init__(self, config: TextConfig, rngs: nnx.Rngs, dtype: jnp.dtype, backend: str):
        experts, hidden, width = config.num_experts, config.moe_intermediate_size, config.hidden_size
        self.gate_up_EFD = weight(rngs, dtype, experts=experts, expert_mlp=2 * hidden, embed=width)
        self.down_EDF = weight(rngs, dtype, experts=experts, embed=width, expert_mlp=hidden)
        self.backend = backend

    def __call__(self, x_AD: jax.Array, routing: Routing) -> jax.Array:
        run = over_mesh(BACKENDS[self.backend], self.mesh)
        return run(x_AD, routing, self.gate_up_EFD[...], self.down_EDF[...])
