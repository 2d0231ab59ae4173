"""Experts as one batched matrix product, each with room for as many tokens as the busiest needs.

    busiest expert -> smallest capacity that holds it -> tokens gathered [E, R, D] -> products -> back [A, X, D]

The capacity is chosen on the device by `lax.switch`, so nothing is ever dropped. Evenly spread tokens waste about
half of the arithmetic; where reading the weights decides the time, as for one canvas, that costs nothing. Where many
tokens crowd one expert, room for as many in all of them would cost much: on a GPU the blocks of `moe_grouped.py` then
take over, which read the weights of crowded experts alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from dgemma_jax.model import gpu
from dgemma_jax.model.mlp import gelu
from dgemma_jax.model.moe_grouped import grouped_blocks, supports
from dgemma_jax.model.parameter import einsum
from dgemma_jax.model.quantized import Quantized
from dgemma_jax.model.router import Routing

CAPACITIES = (8, 16, 32, 64, 128, 256, 512, 1024)
EXPERTS_WIDENED = 8
"""Of quantised experts, how many are in full precision at a time."""
CROWDED = 4
"""Times the mean number of tokens of an expert, from which on it is crowded."""


def capacity_buckets(x_AD: jax.Array, routing: Routing, gate_up_EFD: jax.Array, down_EDF: jax.Array) -> jax.Array:
    """As `moe.all_experts`. Which capacity runs, and so the order of sums, depends on all tokens of the batch."""
    (A, X), E = routing.expert_AX.shape, gate_up_EFD.shape[0]
    expert_Z = routing.expert_AX.reshape(-1)
    one_hot_ZE = (expert_Z[:, None] == jnp.arange(E)[None]).astype(jnp.int32)
    so_far_ZE = jnp.cumsum(one_hot_ZE, axis=0)
    rank_AX = jnp.take_along_axis(so_far_ZE, expert_Z[:, None], axis=1).reshape(A, X) - 1
    # A token picks an expert once, so as many rows as tokens are always enough.
    sizes = (*(size for size in CAPACITIES if size < A), A)
    runs: list[Callable[..., jax.Array]] = [functools.partial(_run, size) for size in sizes]
    _, width, hidden = down_EDF.shape
    if gpu.runs_kernels() and supports(hidden, width):
        # Over all experts, of which a device may have some: then it has as many of the choices.
        mean = A * X / routing.probability_AE.shape[1]
        sizes = tuple(size for size in sizes if size <= max(CROWDED * mean, CAPACITIES[0]))
        runs = [*runs[: len(sizes)], _crowded]
    bucket = jnp.searchsorted(jnp.asarray(sizes), jnp.max(so_far_ZE[-1]))
    return jax.lax.switch(bucket, runs, x_AD, routing, rank_AX, gate_up_EFD, down_EDF)


def _crowded(
    x_AD: jax.Array, routing: Routing, rank_AX: jax.Array, gate_up_EFD: jax.Array, down_EDF: jax.Array
) -> jax.Array:
    """As `_run`, which needs the ranks."""
    return grouped_blocks(x_AD, routing, gate_up_EFD, down_EDF)


def _run(
    capacity: int, x_AD: jax.Array, routing: Routing, rank_AX: jax.Array, gate_up_EFD: jax.Array, down_EDF: jax.Array
) -> jax.Array:
    (A, D), (X, E) = x_AD.shape, (rank_AX.shape[1], gate_up_EFD.shape[0])
    # A choice of another device's expert has no rank and gets no slot.
    slot_AX = jnp.where(routing.expert_AX < E, routing.expert_AX * capacity + rank_AX, E * capacity)
    token_AX = jnp.broadcast_to(jnp.arange(A, dtype=jnp.int32)[:, None], (A, X))
    token_Z = jnp.full(E * capacity, A, jnp.int32).at[slot_AX].set(token_AX, mode="drop")
    x_ERD = jnp.take(x_AD, token_Z, axis=0, mode="fill", fill_value=0).reshape(E, capacity, D)
    y_ERD = _experts(x_ERD, gate_up_EFD, down_EDF)
    y_AXD = jnp.take(y_ERD.reshape(-1, D), slot_AX, axis=0, mode="fill", fill_value=0).astype(jnp.float32)
    return jnp.sum(y_AXD * routing.weight_AX[..., None], axis=1).astype(x_AD.dtype)


def _experts(x_ERD: jax.Array, gate_up_EFD: jax.Array, down_EDF: jax.Array) -> jax.Array:
    """Every expert over its own rows: [E, R, D]."""
    if isinstance(gate_up_EFD, Quantized):
        # A few experts at a time are widened, never all of them.
        experts = (x_ERD, gate_up_EFD, down_EDF)
        return jax.lax.map(lambda expert: _expert(*expert), experts, batch_size=EXPERTS_WIDENED)
    gate_ERF, up_ERF = jnp.split(einsum("erd,efd->erf", x_ERD, gate_up_EFD), 2, axis=-1)
    return einsum("erf,edf->erd", gelu(gate_ERF) * up_ERF, down_EDF)


def _expert(x_RD: jax.Array, gate_up_FD: jax.Array, down_DF: jax.Array) -> jax.Array:
    gate_RF, up_RF = jnp.split(einsum("rd,fd->rf", x_RD, gate_up_FD), 2, axis=-1)
    return einsum("rf,df->rd", gelu(gate_RF) * up_RF, down_DF)
