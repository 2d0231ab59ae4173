"""Experts spread over devices: each runs its own on all tokens, and the devices sum what they made.

Any backend of `moe.BACKENDS` does the local part. It is told of tokens that chose an expert of another device by the
number of its experts in place of an expert, and a weight of zero: such a choice must cost and count for nothing.

Tokens are replicated rather than sent around: a canvas is small, its experts are most of them, and no device waits for
more than one sum a layer.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from dgemma_jax import sharding
from dgemma_jax.model.router import Routing

ExpertFunction = Callable[[jax.Array, Routing, jax.Array, jax.Array], jax.Array]


def over_mesh(run: ExpertFunction, mesh: Mesh | None) -> ExpertFunction:
    """The same function with the experts over the mesh, and the tokens over `data` where they divide."""
    return run if mesh is None else lambda *arguments: _spread(run, mesh, *arguments)


def _spread(
    run: ExpertFunction,
    mesh: Mesh,
    x_AD: jax.Array,
    routing: Routing,
    gate_up_EFD: jax.Array,
    down_EDF: jax.Array,
) -> jax.Array:
    axes = sharding.axes_of("experts", gate_up_EFD.shape[0], mesh)
    experts, tokens = PartitionSpec(axes or None), sharding.spec(["rows"], x_AD.shape[:1], mesh)

    def local(x_AD: jax.Array, routing: Routing, gate_up_EFD: jax.Array, down_EDF: jax.Array) -> jax.Array:
        if not axes:
            return run(x_AD, routing, gate_up_EFD, down_EDF)
        mine = of_device(routing, jax.lax.axis_index(axes), gate_up_EFD.shape[0])
        return jax.lax.psum(run(x_AD, mine, gate_up_EFD, down_EDF), axes)

    # Backends loop as often as their device's tokens need, which the checker of replication cannot follow.
    return jax.shard_map(
        local, mesh=mesh, in_specs=(tokens, tokens, experts, experts), out_specs=tokens, check_vma=False
    )(x_AD, routing, gate_up_EFD, down_EDF)


def of_device(routing: Routing, device: jax.Array, E: int) -> Routing:
    """What of a routing concerns a device that has `E` experts: they are counted from 0, and E means another's."""
    expert_AX = routing.expert_AX - device * E
    here_AX = (expert_AX >= 0) & (expert_AX < E)
    return routing._replace(
        expert_AX=jnp.where(here_AX, expert_AX, E), weight_AX=jnp.where(here_AX, routing.weight_AX, 0)
    )
