"""Attention of a canvas as one kernel on NVIDIA GPUs: its scores and weights never leave the registers.

    queries of one key head, a tile at a time -> the canvas's own keys -> cached keys, as far as they are filled -> out

The softmax is merged block by block, as in FlashAttention-2 (arXiv 2307.08691). A row does not notice what others hold,
but how many there are decides how many keys are scored at a time, and so the order of its sums. Written in Pallas
(https://docs.jax.dev/en/latest/pallas) for its Triton backend; elsewhere it can be interpreted. Its plain twin is
`attention.attend`.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from dgemma_jax.model.attention import MASKED, Segment
from dgemma_jax.model.gpu import cuda_capability

QUERIES = 64
"""Pairs of token and head of one program; they share a key head."""
KEYS, PROCESSORS = (64, 32), 132
"""Keys that are scored at a time: the first where no processor has more than one program, else so few that two fit; or
that one fits, of a large head (160 KB).
"""
WARPS, STAGES = 4, 2
"""Threads of a program, in 32, and blocks of keys that are being read at a time. Measured on an H200:
docs/performance.md."""
COLUMNS = 256
"""Of values, of one program at most: the sums of more do not fit its registers. Of a larger head several programs score
the same keys."""
LARGEST_HEAD = 512
"""Of full layers of the 26B; queries of a larger one leave no room for keys."""
CAPABILITIES = (9, 10)
"""Of CUDA devices those whose processors have the memory for it, 227 KB: Hopper and data-centre Blackwell."""


def fits(q_BTHC: jax.Array, segments: list[Segment]) -> bool:
    """Whether this is a canvas over a cache, of sizes that the kernel can cut into tiles, on a device that runs it."""
    return _on_large_gpu() and q_BTHC.dtype == jnp.bfloat16 and _divides(q_BTHC, segments)


def _on_large_gpu() -> bool:
    return cuda_capability() in CAPABILITIES


def _divides(q_BTHC: jax.Array, segments: list[Segment]) -> bool:
    if len(segments) != 2 or segments[1].mask_BTS is not None:
        return False
    past, (_, T, H, C) = segments[0], q_BTHC.shape
    _, K, S, _ = past.key_value.key_BKSC.shape
    alike = past.mask_BTS is not None and past.mask_BTS.shape[1] == 1
    whole = (T * H // K) % QUERIES == T % max(KEYS) == S % max(KEYS) == 0
    return alike and whole and 16 <= C <= LARGEST_HEAD and C.bit_count() == 1


def attend_canvas(q_BTHC: jax.Array, segments: list[Segment]) -> jax.Array:
    """As `attention.attend`, over a cache whose keys every query sees alike and the canvas's own keys, all of them."""
    past, own = segments
    (B, T, H, C), (K, S) = q_BTHC.shape, past.key_value.key_BKSC.shape[1:3]
    assert past.mask_BTS is not None
    used_1 = jnp.reshape(jnp.asarray(S if past.used is None else past.used, jnp.int32), 1)
    parts = pl.cdiv(C, COLUMNS)
    grid = (B * K, T * (H // K) // QUERIES, parts)
    keys = KEYS[parts > 1 or grid[0] * grid[1] > PROCESSORS]
    call = pl.pallas_call(
        functools.partial(_kernel, Sizes(T, H // K, K, C, C // parts, keys)),
        out_shape=jax.ShapeDtypeStruct(q_BTHC.shape, q_BTHC.dtype),
        grid=grid,
        compiler_params=plt.CompilerParams(num_warps=WARPS, num_stages=STAGES),
        interpret=jax.default_backend() != "gpu",
        name="canvas_attention",
    )
    return call(used_1, past.mask_BTS[:, 0].astype(jnp.int8), q_BTHC, *own.key_value, *past.key_value)


class Sizes(NamedTuple):
    """Tokens of a canvas, query heads to a key head, key heads, size of a head, columns of values, keys at a time."""

    T: int
    G: int
    K: int
    C: int
    columns: int
    keys: int


class _Running(NamedTuple):
    """The softmax over the keys so far, not yet divided: maximum, sum of exponentials, weighted values."""

    max_R: jax.Array
    total_R: jax.Array
    out_RC: jax.Array


def _kernel(
    sizes: Sizes,
    used_ref: Any,
    mask_ref: Any,
    q_ref: Any,
    key_ref: Any,
    value_ref: Any,
    past_key_ref: Any,
    past_value_ref: Any,
    out_ref: Any,
) -> None:
    """One tile of the queries of one key head, and some columns of its values."""
    row, head = pl.program_id(0) // sizes.K, pl.program_id(0) % sizes.K
    query_R = pl.program_id(1) * QUERIES + jnp.arange(QUERIES, dtype=jnp.int32)
    token_R, head_R = query_R // sizes.G, head * sizes.G + query_R % sizes.G
    first = pl.program_id(2) * sizes.columns
    columns = pl.ds(first, sizes.columns)
    of_query = (row, token_R[:, None], head_R[:, None])
    q_RC = plt.load(q_ref.at[*of_query, jnp.arange(sizes.C, dtype=jnp.int32)[None]])

    def own(block: jax.Array, running: _Running) -> _Running:
        keys = (row, head, pl.ds(block * sizes.keys, sizes.keys))
        return _add(running, q_RC, plt.load(key_ref.at[keys]), plt.load(value_ref.at[*keys, columns]), None)

    def cached(block: jax.Array, running: _Running) -> _Running:
        keys = (row, head, pl.ds(block * sizes.keys, sizes.keys))
        seen_S = plt.load(mask_ref.at[row, keys[-1]]) != 0
        past_SC = plt.load(past_value_ref.at[*keys, columns])
        return _add(running, q_RC, plt.load(past_key_ref.at[keys]), past_SC, seen_S)

    least_R = jnp.full(QUERIES, MASKED, jnp.float32)
    start = _Running(least_R, jnp.zeros(QUERIES, jnp.float32), jnp.zeros((QUERIES, sizes.columns), jnp.float32))
    # A canvas sees itself, so that whatever of the cache is masked adds exactly nothing after that.
    running = jax.lax.fori_loop(0, sizes.T // sizes.keys, own, start)
    filled = (used_ref[0] + sizes.keys - 1) // sizes.keys
    running = jax.lax.fori_loop(0, filled, cached, running)
    place = out_ref.at[*of_query, first + jnp.arange(sizes.columns, dtype=jnp.int32)[None]]
    plt.store(place, (running.out_RC / running.total_R[:, None]).astype(out_ref.dtype))


def _add(
    running: _Running, q_RC: jax.Array, key_SC: jax.Array, value_SC: jax.Array, seen_S: jax.Array | None
) -> _Running:
    score_RS = plt.dot(q_RC, key_SC.T)
    if seen_S is not None:
        score_RS = jnp.where(seen_S[None], score_RS, MASKED)
    max_R = jnp.maximum(running.max_R, jnp.max(score_RS, axis=1))
    scale_R = jnp.exp(running.max_R - max_R)
    weight_RS = jnp.exp(score_RS - max_R[:, None])
    return _Running(
        max_R,
        running.total_R * scale_R + jnp.sum(weight_RS, axis=1),
        running.out_RC * scale_R[:, None] + plt.dot(weight_RS.astype(value_SC.dtype), value_SC),
    )
