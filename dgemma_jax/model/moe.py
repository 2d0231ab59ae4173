"""The mixture of experts: one function, exact backends behind it.

    all_experts       every token through every expert, unchosen ones weighted zero: two dense products. No control
                      flow, differentiable; E/X times the useful arithmetic. The plain twin of the others.
    expert_blocks     a loop over blocks of rows that share one expert; for CPUs. See `moe_blocks.py`.
    capacity_buckets  a batched product with room for the busiest expert; for GPUs. See `moe_buckets.py`.
    grouped_blocks    two kernels that read each expert's weights once, quantised ones as they lie; for NVIDIA GPUs.
                      See `moe_grouped.py`.
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
from dgemma_jax.model.mlp import gelu
from dgemma_jax.model.moe_blocks import expert_blocks
from dgemma_jax.model.moe_buckets import capacity_buckets
from dgemma_jax.model.moe_gmm import gmm
from dgemma_jax.model.moe_grouped import grouped_blocks, supports
from dgemma_jax.model.moe_ragged import ragged_dot
from dgemma_jax.model.parameter import einsum, weight
from dgemma_jax.model.quantized import Quantized
from dgemma_jax.model.router import Routing


def all_experts(x_AD: jax.Array, routing: Routing, gate_up_EFD: jax.Array, down_EDF: jax.Array) -> jax.Array:
    """Weighted sum over the chosen experts of each token: [A, D]. Gate rows come first in `gate_up_EFD`."""
    A, E = x_AD.shape[0], gate_up_EFD.shape[0]
    weight_AE = jnp.zeros((A, E), jnp.float32).at[jnp.arange(A)[:, None], routing.expert_AX].set(routing.weight_AX)
    if isinstance(gate_up_EFD, Quantized) and isinstance(down_EDF, Quantized):
        return _one_by_one(x_AD, weight_AE, gate_up_EFD, down_EDF)
    D, F = down_EDF.shape[1:]
    # Plain matrix products: XLA's CPU backend sums products over two axes in another order for few rows than for many,
    # and a canvas must not notice that others are in the batch.
    gate_up_AEF = einsum("ad,yd->ay", x_AD, gate_up_EFD.reshape(-1, D)).reshape(A, E, 2 * F)
    gate_AEF, up_AEF = jnp.split(gate_up_AEF, 2, axis=-1)
    hidden_AEF = (gelu(gate_AEF) * up_AEF).astype(jnp.float32) * weight_AE[..., None]
    down_DY = jnp.swapaxes(down_EDF, 0, 1).reshape(D, -1)
    return einsum("ay,dy->ad", hidden_AEF.astype(x_AD.dtype).reshape(A, -1), down_DY)


def _one_by_one(x_AD: jax.Array, weight_AE: jax.Array, gate_up_EFD: Quantized, down_EDF: Quantized) -> jax.Array:
    """The same for quantised weights, of which one expert's at a time are widened."""

    def add(y_AD: jax.Array, expert: tuple[jax.Array, Quantized, Quantized]) -> tuple[jax.Array, None]:
        weight_A, gate_up_FD, down_DF = expert
        gate_AF, up_AF = jnp.split(einsum("ad,fd->af", x_AD, gate_up_FD), 2, axis=-1)
        out_AD = einsum("af,df->ad", gelu(gate_AF) * up_AF, down_DF)
        return y_AD + out_AD.astype(jnp.float32) * weight_A[:, None], None

    start_AD = jnp.zeros(x_AD.shape, jnp.float32)
    return jax.lax.scan(add, start_AD, (weight_AE.T, gate_up_EFD, down_EDF))[0].astype(x_AD.dtype)


BACKENDS: dict[str, ExpertFunction] = {
    "all_experts": all_experts,
    "expert_blocks": expert_blocks,
    "capacity_buckets": capacity_buckets,
    "grouped_blocks": grouped_blocks,
    "gmm": gmm,
    "ragged_dot": ragged_dot,
}


def choose_backend(config: TextConfig, platform: str, *, quantized: bool = False) -> str:
    """The backend for a device ("cpu", "gpu", ...): all experts unless that costs much more than the chosen ones.

    On an H200 a layer of the 26B takes 0.52 ms with buckets and 0.59 with blocks; quantised, 3.0 and 0.47.
    """
    if config.num_experts <= 4 * config.top_k_experts:
        return "all_experts"
    if platform == "cpu":
        return "expert_blocks"
    if platform == "tpu" and not quantized:
        return "gmm"
    blocks = platform == "gpu" and quantized and supports(config.moe_intermediate_size, config.hidden_size)
    return "grouped_blocks" if blocks else "capacity_buckets"


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
