"""Embeddings of tokens from a table whose rows are spread over devices."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from dgemma_jax import sharding


def look_up(embedding_VD: jax.Array, tokens_BT: jax.Array, mesh: Mesh | None) -> jax.Array:
    """The row of every token, [B, T, D]: each device looks up what it has, and one sum brings the rows together."""
    axes = () if mesh is None else sharding.axes_of("vocabulary", len(embedding_VD), mesh)
    if mesh is None or not axes:
        return jnp.take(embedding_VD, tokens_BT, axis=0)

    def local(embedding_VD: jax.Array, tokens_BT: jax.Array) -> jax.Array:
        place_BT = tokens_BT - jax.lax.axis_index(axes) * len(embedding_VD)
        here_BT = (place_BT >= 0) & (place_BT < len(embedding_VD))
        found_BTD = jnp.take(embedding_VD, jnp.where(here_BT, place_BT, 0), axis=0)
        return jax.lax.psum(jnp.where(here_BT[..., None], found_BTD, 0), axes)

    rows = sharding.spec(["rows"], tokens_BT.shape[:1], mesh)
    return jax.shard_map(local, mesh=mesh, in_specs=(PartitionSpec(axes), rows), out_specs=rows, check_vma=False)(
        embedding_VD, tokens_BT
    )
