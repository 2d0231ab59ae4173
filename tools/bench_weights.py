"""Random weights to measure with, drawn where they will lie; quantised ones as the numbers that are stored.

Weights as a fresh model draws them route unevenly: attention adds nearly the same vector to all tokens, its norm makes
that long, and layer after layer more tokens agree on their experts, until one has ten times the mean. Here that norm is
quiet. Random tokens then keep directions of their own and choose experts as by lot: in every layer of 128 experts the
busiest has about twice the mean of the tokens of a canvas.
"""

from __future__ import annotations

import functools
from statistics import NormalDist
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax import nnx
from jax.sharding import Mesh, Sharding

from dgemma_jax.checkpoint.names import Path
from dgemma_jax.checkpoint.quantize import is_quantizable, matrix_shape
from dgemma_jax.checkpoint.quantized_shards import abstract
from dgemma_jax.config import TextConfig
from dgemma_jax.model.quantized import OFFSET, Quantized
from dgemma_jax.sharding import parameter_sharding

_NORMS = {"attention_out_norm": 0.02, "feedforward_out_norm": 0.5}
"""Scales of the norms of what is added to the residual stream. Others are 1, but of queries and keys."""
_FINITE = 0xBF  # the bits of an 8-bit float without the highest of its exponent: never NaN
_SPREAD = {
    "int8": np.arange(-128, 128).std(),
    "int4": np.asarray([0, *range(-7, 8)]).std(),
    "fp8": (np.arange(256).astype(np.uint8) & _FINITE).view(ml_dtypes.float8_e4m3fn).astype(np.float32).std(),
}
"""Of numbers as `_bits` draws them: evenly, in four bits 0 twice as often."""
KINDS = tuple(_SPREAD)


def loudness(config: TextConfig, skew: float) -> float:
    """How large the first expert's scores must be, of the others', for it to get `skew` times the mean of the tokens.

    Raises ValueError for what larger scores cannot do: half of them are negative.
    """
    share, normal = config.top_k_experts / config.num_experts, NormalDist()
    if skew == 1:
        return 1.0
    if not 1 < skew < 0.5 / share:
        raise ValueError(f"--skew must be from 1 to less than {0.5 / share:g} with these experts, found {skew:g}")
    return normal.inv_cdf(1 - share) / normal.inv_cdf(1 - skew * share)


def filled(
    state: nnx.State, seed: int, *, quantize: str | None, loud: float = 1.0, mesh: Mesh | None = None, inside: Path = ()
) -> nnx.State:
    """Parameters for shapes: on a mesh each device makes its own part, of the numbers that one device would make.

    loud: see `loudness`. inside: the path of what has these parameters, where that is not the model.
    """
    key, drawn = jax.random.key(seed), []
    for index, (path, leaf) in enumerate(nnx.to_flat_state(state)):
        own, whole = jax.random.fold_in(key, index), (*inside, *path)
        if quantize is not None and is_quantizable(whole):
            value: Any = _quantised(own, whole, leaf, quantize, mesh)
        else:
            place = None if mesh is None else parameter_sharding(leaf, mesh)
            value = _drawing(place)(own, leaf.shape, leaf.dtype, *_moments(whole, leaf.shape, loud))
        drawn.append((path, leaf.replace(value)))
    return nnx.from_flat_state(drawn)


def _moments(path: Path, shape: tuple[int, ...], loud: float) -> tuple[float, float | np.ndarray]:
    """Mean and standard deviation of a parameter's numbers."""
    if path[-2] in ("q_norm", "k_norm"):
        return shape[0] ** -0.25, 0.0  # attention has no other 1/sqrt(C)
    if len(shape) == 1:
        return _NORMS.get(str(path[-2]), 1.0), 0.0
    if path[-1] == "proj_ED":
        return 0.0, np.where(np.arange(shape[0])[:, None] == 0, loud, 1.0)
    return 0.0, matrix_shape(path, shape)[-1] ** -0.5


@functools.cache
def _drawing(place: Sharding | None) -> Any:
    """`_normal` for arrays that lie there; compiled once a shape."""
    return jax.jit(_normal, static_argnums=(1, 2), out_shardings=place)


def _normal(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype, mean: Any, std: Any) -> jax.Array:
    return (jax.random.normal(key, shape) * std + mean).astype(dtype)


def _quantised(key: jax.Array, path: Path, leaf: nnx.Variable, kind: str, mesh: Mesh | None) -> Quantized:
    """A matrix of evenly drawn bits, with the scales that give its numbers the spread of a full one's."""
    form = abstract(path, leaf, "int4" if kind == "int4" else "int8", mesh)  # FP8 lies as int8 does
    value_place, scale_place = (None, None) if mesh is None else (form.values.sharding, form.scale.sharding)
    values = _drawing_bits(value_place)(key, form.values.shape, kind)
    scale = matrix_shape(path, leaf.shape)[-1] ** -0.5 / _SPREAD[kind]
    scales = _drawing(scale_place)(key, form.scale.shape, form.scale.dtype, scale, 0.0)
    return Quantized(values, scales, form.bits, form.place)


@functools.cache
def _drawing_bits(place: Sharding | None) -> Any:
    return jax.jit(_bits, static_argnums=(1, 2), out_shardings=place)


def _bits(key: jax.Array, shape: tuple[int, ...], kind: str) -> jax.Array:
    bits = jax.random.bits(key, shape, "uint8")
    if kind == "int8":
        return jax.lax.bitcast_convert_type(bits, jnp.int8)
    if kind == "fp8":
        return bits & _FINITE
    # No -8, which quantising never makes: the mean would not be zero, all weights a little alike, and loads uneven.
    low, high = (jnp.where(half == 0, OFFSET, half) for half in (bits & 15, bits >> 4))
    return low | high << 4
