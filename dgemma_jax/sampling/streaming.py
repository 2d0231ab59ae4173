"""The vocabulary pass in one sweep over tiles of the embedding: of the logits those of one tile exist at a time.

    tile of the embedding -> logits of the tile -> running maximum, sum, entropy, argmax, expected embedding
                                                -> sums of small groups of tokens, from which the draw is made

Each tile is read once for both of its products. The sums are merged as in FlashAttention (arXiv 2205.14135). The draw
is the inverse transform of `head.draw`, with the same one number a position, in two stages: the group in which the
cumulative probability passes it, then the token in the group, whose logits are computed again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from dgemma_jax import sharding
from dgemma_jax.model.attention import MASKED
from dgemma_jax.model.parameter import einsum, slice_axis
from dgemma_jax.model.text import TextModel
from dgemma_jax.sampling.head import Prediction, draw, predict_drawn
from dgemma_jax.sampling.truncation import Truncation

TILES = {"cpu": 4096}
LARGE_TILE = 65536
MOST_LOGITS = 2**28
"""Tokens in a tile. On a CPU its logits and weights should stay in the cache. A GPU takes all tokens as one while there
are no more logits than that, a gigabyte of float32, else as many as that, but never less than the large one: it copies
every tile that is not the whole, and products with small ones are slow."""
GROUP = 32
"""Tokens in a group of the draw."""


class Vocabulary(Protocol):
    """What a sweep reads: the `TextModel`, or the part of it that a device has."""

    config: Any  # a TextConfig, whose vocabulary is that of the embedding
    embedding_VD: Any

    def cap(self, raw: jax.Array) -> jax.Array: ...


class Sums(NamedTuple):
    """What is known of each position after some tiles; sums are relative to the exponential of the maximum.

    `spread` is the sum of how far each logit is below the maximum, weighted; `soft` are weighted embeddings, and
    `soft_total` their weights, which are those of logits rounded to the weights' type.
    """

    max_A: jax.Array
    argmax_A: jax.Array
    total_A: jax.Array
    spread_A: jax.Array
    soft_AD: jax.Array
    soft_total_A: jax.Array


class Groups(NamedTuple):
    """Of one tile: its maximum, and the sum of each group relative to it."""

    max_A: jax.Array
    sum_AZ: jax.Array


def predict_streaming(
    text: TextModel,
    x_BLD: jax.Array,
    temperature_B: jax.Array,
    uniform_BL: jax.Array,
    truncation: Truncation | None,
    goes_on_B: jax.Array | None = None,
) -> Prediction:
    """As `head.predict`, equal to it but for the order of sums; no expected embedding is made where no row goes on.

    With a truncation the draws of rows that have bounds are made of their probabilities whole, a slice of positions at
    a time: a second product with the embedding, in which others take no part unless most rows have bounds.
    """

    def swept(x_BLD: jax.Array, temperature_B: jax.Array, uniform_BL: jax.Array, goes_on_B: jax.Array) -> Swept:
        B, L, D = x_BLD.shape
        x_AD, temperature_A1 = x_BLD.reshape(B * L, D), jnp.repeat(temperature_B, L)[:, None]
        sums, groups = sweep(text, x_AD, temperature_A1, jnp.repeat(goes_on_B, L))
        drawn_A = draw_swept(text, x_AD, temperature_A1, groups, sums.max_A, uniform_BL.reshape(-1))
        return Swept(jax.tree.map(lambda x: x.reshape(B, L, *x.shape[1:]), sums), drawn_A.reshape(B, L))

    return predict_swept(swept, text, x_BLD, temperature_B, uniform_BL, truncation, goes_on_B)


class Swept(NamedTuple):
    """The sums of all tokens, each [B, L, ...], and the drawn tokens."""

    sums: Sums
    drawn_BL: jax.Array


def predict_swept(
    swept: Callable[[jax.Array, jax.Array, jax.Array, jax.Array], Swept],
    text: TextModel,
    x_BLD: jax.Array,
    temperature_B: jax.Array,
    uniform_BL: jax.Array,
    truncation: Truncation | None,
    goes_on_B: jax.Array | None,
) -> Prediction:
    """The prediction from a sweep over the whole vocabulary, on one device or on many."""
    goes_on_B = jnp.ones(len(x_BLD), bool) if goes_on_B is None else goes_on_B
    sums, drawn_BL = swept(text.norm(x_BLD), temperature_B, uniform_BL, goes_on_B)
    if truncation is not None:
        drawn_BL = _bounded(text, Rows(x_BLD, temperature_B, uniform_BL, truncation, drawn_BL))
    soft_BLD = (sums.soft_AD / sums.soft_total_A[..., None]).astype(text.embedding_VD.dtype) * text.embedding_scale
    return Prediction(
        argmax_BL=sums.argmax_A,
        drawn_BL=drawn_BL,
        entropy_BL=jnp.log(sums.total_A) + sums.spread_A / sums.total_A,
        soft_BLD=soft_BLD,
    )


class Rows(NamedTuple):
    """What draws of rows within their bounds are made of, and the tokens that were drawn without bounds."""

    x_BLD: jax.Array
    temperature_B: jax.Array
    uniform_BL: jax.Array
    truncation: Truncation
    drawn_BL: jax.Array

    def bounded(self) -> jax.Array:
        """Which have bounds: [B]."""
        return (self.truncation.top_k_B > 0) | (self.truncation.top_p_B < 1)


def _bounded(text: TextModel, rows: Rows) -> jax.Array:
    """The drawn tokens, of rows that have bounds again and within them: [B, L].

    One row after another, so that others cost nothing, and over a mesh one of each device; all together where most have
    bounds, as fewer and larger products then take less.
    """
    mesh, (B, L) = text.mesh, rows.drawn_BL.shape
    apart = 1 if mesh is None else math.prod(mesh.shape[axis] for axis in sharding.axes_of("rows", B, mesh))

    def again(rows: Rows) -> jax.Array:
        drawn_BL = predict_drawn(text, rows.x_BLD, rows.temperature_B, rows.uniform_BL, rows.truncation)
        return jnp.where(rows.bounded()[:, None], drawn_BL, rows.drawn_BL)

    def each(rows: Rows) -> jax.Array:
        return jax.lax.cond(jnp.any(rows.bounded()), again, lambda rows: rows.drawn_BL, rows)

    def one_by_one(rows: Rows) -> jax.Array:
        cut = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(apart, -1, *x.shape[1:]), 1, 0), rows)
        return jnp.moveaxis(jax.lax.map(each, cut), 0, 1).reshape(B, L)

    return jax.lax.cond(2 * jnp.sum(rows.bounded()) > B, again, one_by_one, rows)


def sweep(text: Vocabulary, x_AD: jax.Array, temperature_A1: jax.Array, goes_on_A: jax.Array) -> tuple[Sums, Groups]:
    """All tiles, one after another: the sums over all, and the groups of each with the tiles in front."""
    (A, D), V = x_AD.shape, text.config.vocab_size
    zero_A = jnp.zeros(A, jnp.float32)
    start = Sums(
        jnp.full(A, MASKED, jnp.float32),
        jnp.zeros(A, jnp.int32),
        zero_A,
        zero_A,
        jnp.zeros((A, D), jnp.float32),
        zero_A,
    )

    def add(sums: Sums, tile: jax.Array) -> tuple[Sums, Groups]:
        return _add_tile(text, x_AD, temperature_A1, goes_on_A, sums, tile)

    return jax.lax.scan(add, start, jnp.arange(-(-V // _tile_size(A, V)), dtype=jnp.int32))


def _tile_size(A: int, V: int) -> int:
    """Of small vocabularies the whole, in full groups where there are that many tokens."""
    large = max(MOST_LOGITS // A // GROUP * GROUP, LARGE_TILE)
    return min(TILES.get(jax.default_backend(), large), max(V // GROUP * GROUP, 1))


def _add_tile(
    text: Vocabulary, x_AD: jax.Array, temperature_A1: jax.Array, goes_on_A: jax.Array, sums: Sums, tile: jax.Array
) -> tuple[Sums, Groups]:
    V = text.config.vocab_size
    size = _tile_size(len(x_AD), V)
    # The last tile is a whole one too: it reaches back, and what the one before has counted is masked.
    first = jnp.minimum(tile * size, V - size)
    embedding_YD = slice_axis(text.embedding_VD[...], first, size)
    logit_AY = text.cap(einsum("ad,yd->ay", x_AD, embedding_YD)) / temperature_A1
    place_Y = jnp.arange(size, dtype=jnp.int32)
    if V % size:
        logit_AY = jnp.where((first + place_Y)[None] >= tile * size, logit_AY, MASKED)
    max_A = jnp.max(logit_AY, axis=-1)
    # The first of the largest, in float32, which holds places exactly: XLA's argmax is one number at a time on CPUs.
    place_AY = jnp.where(logit_AY == max_A[:, None], place_Y.astype(jnp.float32)[None], size - 1)
    argmax_A = first + jnp.min(place_AY, axis=-1).astype(jnp.int32)
    below_AY = max_A[:, None] - logit_AY
    weight_AY = jnp.exp(-below_AY)
    sum_AZ = jnp.sum(weight_AY.reshape(len(x_AD), -1, min(GROUP, size)), axis=-1)
    whole_A = jnp.maximum(sums.max_A, max_A)
    old_A, new_A = jnp.exp(sums.max_A - whole_A), jnp.exp(max_A - whole_A)
    total_A = jnp.sum(sum_AZ, axis=-1)
    spread_A = jnp.sum(weight_AY * below_AY, axis=-1)
    soft_AY, soft_total_A = _soft_weights(logit_AY, max_A, weight_AY, total_A, embedding_YD.dtype)
    return Sums(
        max_A=whole_A,
        argmax_A=jnp.where(max_A > sums.max_A, argmax_A, sums.argmax_A),
        total_A=sums.total_A * old_A + total_A * new_A,
        spread_A=old_A * (sums.spread_A + (whole_A - sums.max_A) * sums.total_A)
        + new_A * (spread_A + (whole_A - max_A) * total_A),
        soft_AD=_add_soft(sums.soft_AD * old_A[:, None], jnp.where(goes_on_A, new_A, 0), soft_AY, embedding_YD),
        soft_total_A=sums.soft_total_A * old_A + soft_total_A * new_A,
    ), Groups(max_A, sum_AZ)


def _soft_weights(
    logit_AY: jax.Array, max_A: jax.Array, weight_AY: jax.Array, total_A: jax.Array, dtype: jnp.dtype
) -> tuple[jax.Array, jax.Array]:
    """Weights of the expected embedding and their sum: see `head.soft_embedding` for the rounding."""
    if dtype == jnp.float32:
        return weight_AY, total_A
    rounded_AY = jnp.exp(logit_AY.astype(dtype).astype(jnp.float32) - max_A[:, None])
    return rounded_AY.astype(dtype), jnp.sum(rounded_AY, axis=-1)


def _add_soft(soft_AD: jax.Array, scale_A: jax.Array, weight_AY: jax.Array, embedding_YD: jax.Array) -> jax.Array:
    """Adds a tile's embeddings, unless their probability is zero in float32 for every position."""

    def add(soft_AD: jax.Array) -> jax.Array:
        exact = jax.lax.Precision.HIGHEST if embedding_YD.dtype == jnp.float32 else None
        # fp32 sums over the tiles, whatever the weights' type.
        tile_AD = jnp.matmul(weight_AY, embedding_YD, precision=exact, preferred_element_type=jnp.float32)
        return soft_AD + scale_A[:, None] * tile_AD

    return jax.lax.cond(jnp.any(scale_A > 0), add, lambda soft_AD: soft_AD, soft_AD)


def draw_swept(
    text: Vocabulary,
    x_AD: jax.Array,
    temperature_A1: jax.Array,
    groups: Groups,
    max_A: jax.Array,
    uniform_A: jax.Array,
) -> jax.Array:
    """The token at which the cumulative probability passes the uniform number."""
    V = text.config.vocab_size
    size = _tile_size(len(x_AD), V)
    group = min(GROUP, size)
    scale_NA1 = jnp.exp(groups.max_A - max_A[None])[..., None]
    weight_AZ = jnp.moveaxis(groups.sum_AZ * scale_NA1, 0, 1).reshape(len(x_AD), -1)
    chosen_A, rest_A = stage(weight_AZ, uniform_A)
    tile_A, inside_A = chosen_A // (size // group), chosen_A % (size // group)
    first_A = jnp.minimum(tile_A * size, V - size) + inside_A * group
    token_AR = first_A[:, None] + jnp.arange(group, dtype=jnp.int32)[None]
    embedding_ARD = jnp.take(text.embedding_VD[...], token_AR, axis=0)
    logit_AR = text.cap(einsum("ad,ard->ar", x_AD, embedding_ARD)) / temperature_A1
    logit_AR = jnp.where(token_AR >= tile_A[:, None] * size, logit_AR, MASKED)
    within_A = draw(jax.nn.softmax(logit_AR, axis=-1), rest_A)
    return first_A + within_A


def stage(weight_AZ: jax.Array, uniform_A: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The group in which the cumulative weight passes the uniform number, and how far into the group, in [0, 1)."""
    chosen_A = draw(weight_AZ, uniform_A)
    cumulative_AZ = jnp.cumsum(weight_AZ, axis=-1)
    weight_A, end_A = (jnp.take_along_axis(x, chosen_A[:, None], axis=-1)[:, 0] for x in (weight_AZ, cumulative_AZ))
    rest_A = (uniform_A * cumulative_AZ[:, -1] - (end_A - weight_A)) / weight_A
    return chosen_A, jnp.clip(rest_A, 0, 1 - 2**-24)
