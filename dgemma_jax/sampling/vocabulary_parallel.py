"""The streaming vocabulary pass with the vocabulary spread over devices.

Each device sweeps over its own tokens. One gather brings every device the maximum, argmax and mass of all; one sum
merges the entropies and expected embeddings. The draw has one more stage in front: the device in which the cumulative
probability passes the number, which then draws among its tokens with the rest of it.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from dgemma_jax import sharding
from dgemma_jax.config import TextConfig
from dgemma_jax.model.text import TextModel
from dgemma_jax.sampling.head import Prediction
from dgemma_jax.sampling.streaming import Sums, Swept, draw_swept, predict_swept, stage, sweep
from dgemma_jax.sampling.truncation import Truncation


@dataclasses.dataclass(eq=False)
class _Part:
    """A device's part of the vocabulary. Implements `streaming.Vocabulary`."""

    text: TextModel
    config: TextConfig
    embedding_VD: jax.Array

    def cap(self, raw: jax.Array) -> jax.Array:
        return self.text.cap(raw)


def is_spread(text: TextModel) -> bool:
    """Whether the vocabulary is spread over devices."""
    return text.mesh is not None and bool(sharding.axes_of("vocabulary", text.config.vocab_size, text.mesh))


def predict_spread(
    text: TextModel,
    x_BLD: jax.Array,
    temperature_B: jax.Array,
    uniform_BL: jax.Array,
    truncation: Truncation | None,
    goes_on_B: jax.Array | None = None,
) -> Prediction:
    """As `streaming.predict_streaming`, over the devices of `text.mesh`."""
    mesh = text.mesh
    assert mesh is not None, "one device has the whole vocabulary"
    axes = sharding.axes_of("vocabulary", text.config.vocab_size, mesh)

    def swept(x_BLD: jax.Array, temperature_B: jax.Array, uniform_BL: jax.Array, goes_on_B: jax.Array) -> Swept:
        rows = sharding.spec(["rows"], temperature_B.shape, mesh)
        return jax.shard_map(
            lambda *arguments: _local(text, axes, *arguments),
            mesh=mesh,
            in_specs=(PartitionSpec(axes), rows, rows, rows, rows),
            out_specs=rows,
            check_vma=False,
        )(text.embedding_VD[...], x_BLD, temperature_B, uniform_BL, goes_on_B)

    return predict_swept(swept, text, x_BLD, temperature_B, uniform_BL, truncation, goes_on_B)


def _local(
    text: TextModel,
    axes: tuple[str, ...],
    embedding_VD: jax.Array,
    x_BLD: jax.Array,
    temperature_B: jax.Array,
    uniform_BL: jax.Array,
    goes_on_B: jax.Array,
) -> Swept:
    """On one device, inside `shard_map`."""
    V = len(embedding_VD)
    first = jax.lax.axis_index(axes) * V
    part = _Part(text, dataclasses.replace(text.config, vocab_size=V), embedding_VD)
    x_AD = x_BLD.reshape(-1, x_BLD.shape[-1])
    temperature_A1 = jnp.repeat(temperature_B, x_BLD.shape[1])[:, None]
    own, groups = sweep(part, x_AD, temperature_A1, jnp.repeat(goes_on_B, x_BLD.shape[1]))
    # fp32 holds token ids below 2**24 exactly: one gather for all three.
    places_A = (own.argmax_A + first).astype(jnp.float32)
    max_NA, place_NA, total_NA = jnp.moveaxis(
        jax.lax.all_gather(jnp.stack([own.max_A, places_A, own.total_A]), axes), 1, 0
    )
    max_A = jnp.max(max_NA, axis=0)
    mass_NA = total_NA * jnp.exp(max_NA - max_A[None])
    chosen_A, rest_A = stage(mass_NA.T, uniform_BL.reshape(-1))
    token_A = draw_swept(part, x_AD, temperature_A1, groups, own.max_A, rest_A) + first
    drawn_A = jax.lax.psum(jnp.where(chosen_A == jax.lax.axis_index(axes), token_A, 0), axes)
    sums = _merged(own, max_A, axes)._replace(
        argmax_A=jnp.min(jnp.where(max_NA == max_A[None], place_NA, jnp.inf), axis=0).astype(jnp.int32),
        total_A=jnp.sum(mass_NA, axis=0),
    )
    shape = x_BLD.shape[:2]
    return Swept(jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), sums), drawn_A.reshape(shape))


def _merged(own: Sums, max_A: jax.Array, axes: tuple[str, ...]) -> Sums:
    """Spread and expected embedding over all devices, relative to the maximum of all: one sum."""
    scale_A = jnp.exp(own.max_A - max_A)
    spread_A = scale_A * (own.spread_A + (max_A - own.max_A) * own.total_A)
    scalars_A2 = jnp.stack([spread_A, own.soft_total_A * scale_A], axis=-1)
    both = jax.lax.psum(jnp.concatenate([own.soft_AD * scale_A[:, None], scalars_A2], axis=-1), axes)
    return own._replace(max_A=max_A, soft_AD=both[:, :-2], spread_A=both[:, -2], soft_total_A=both[:, -1])
