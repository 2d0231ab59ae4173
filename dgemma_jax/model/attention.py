"""Attention over segments of keys: what is cached, and what is being computed now.

The segments are scored apart and merged through their common maximum and sum, so the cache is read where it
lies: nothing is concatenated, copied or written (FlashAttention's merge, arXiv 2205.14135, section 3.1). Long
segments are scored a block of keys at a time, merged the same way, so that scores take bounded memory.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dgemma_jax.model.parameter import einsum, slice_axis

MASKED = -1e30  # finite: a row with no visible key in one segment must not become NaN
MOST_SCORES = 2**23
"""Scores of one row of the batch that exist at a time: 32 MiB of float32; 2048 keys for a canvas of the 26B."""
LEAST_BLOCK = 128
"""Keys of a block, however many queries there are: a large image would otherwise go key by key."""
FILLED_BLOCKS = "filled_blocks"
"""The scope of loops over blocks of keys, as often as there are filled ones: for who reads profiles or counts work."""


class KeyValue(NamedTuple):
    """Keys (normed and rotated) and values (normed) of one layer: heads first, as the products read them."""

    key_BKSC: jax.Array
    value_BKSC: jax.Array


class Segment(NamedTuple):
    """Keys and values, and which query may see which key (None: every query sees all).

    used: the mask hides every key from this one on, in all rows, so that none of them need be read. None: not known,
    or a gradient is to go back through the attention.
    """

    key_value: KeyValue
    mask_BTS: jax.Array | None
    used: jax.Array | None = None


def block_of_keys(queries: int, heads: int) -> int:
    """How many keys are scored at a time, where a segment is longer."""
    return max(MOST_SCORES // (queries * heads), LEAST_BLOCK)


def attend(q_BTHC: jax.Array, segments: list[Segment]) -> jax.Array:
    """Softmax attention with scale 1 over the union of the segments: [B, T, H, C].

    Every query must see at least one key in some segment.
    """
    B, T, H, C = q_BTHC.shape
    K = segments[0].key_value.key_BKSC.shape[1]
    # Queries of one key head side by side: so products leave scores in the order that the next ones read.
    q_BKTGC = jnp.moveaxis(q_BTHC.reshape(B, T, K, H // K, C), 2, 1)
    block = block_of_keys(T, H)
    if any(segment.key_value.key_BKSC.shape[2] > block for segment in segments):
        out_BKTGC = _attend_in_blocks(q_BKTGC, segments, block)
    else:
        out_BKTGC = _attend_at_once(q_BKTGC, segments)
    return jnp.moveaxis(out_BKTGC, 1, 2).reshape(B, T, H, C).astype(q_BTHC.dtype)


def _attend_at_once(q_BKTGC: jax.Array, segments: list[Segment]) -> jax.Array:
    scores = [_score(q_BKTGC, segment) for segment in segments]
    max_BKTG1 = jnp.max(jnp.stack([jnp.max(score, axis=-1) for score in scores]), axis=0)[..., None]
    total_BKTG1 = jnp.zeros_like(max_BKTG1)
    out_BKTGC = jnp.zeros(q_BKTGC.shape, jnp.float32)
    for score_BKTGS, segment in zip(scores, segments, strict=True):
        weight_BKTGS = jnp.exp(score_BKTGS - max_BKTG1)
        total_BKTG1 += jnp.sum(weight_BKTGS, axis=-1, keepdims=True)
        out_BKTGC += _weighted(weight_BKTGS, segment.key_value.value_BKSC)
    return out_BKTGC / total_BKTG1


class _Running(NamedTuple):
    """The softmax over the keys so far, not yet divided: maximum, sum of exponentials, weighted values."""

    max_BKTG1: jax.Array
    total_BKTG1: jax.Array
    out_BKTGC: jax.Array


def _attend_in_blocks(q_BKTGC: jax.Array, segments: list[Segment], block: int) -> jax.Array:
    """As `attend`, over blocks of at most `block` keys."""
    least_BKTG1 = jnp.full((*q_BKTGC.shape[:-1], 1), MASKED, jnp.float32)
    running = _Running(least_BKTG1, jnp.zeros_like(least_BKTG1), jnp.zeros(q_BKTGC.shape, jnp.float32))
    for segment in segments:
        running = _add_segment(running, q_BKTGC, segment, block)
    return running.out_BKTGC / running.total_BKTG1


def _add_segment(running: _Running, q_BKTGC: jax.Array, segment: Segment, block: int) -> _Running:
    S = segment.key_value.key_BKSC.shape[2]

    def add(index: jax.Array, running: _Running) -> _Running:
        return _add_block(running, q_BKTGC, _block_of(segment, index * block, min(block, S)))

    if segment.used is None:
        blocks = jnp.arange(-(-S // block), dtype=jnp.int32)
        return jax.lax.scan(lambda running, index: (add(index, running), None), running, blocks)[0]
    # A masked block adds exactly nothing to a row that has seen a key: its weights are zero, its scale is one. What it
    # adds to one that has not is scaled to zero later. So the fullest row may say how many blocks all of them go
    # through: each gets the bits that it gets beside any other.
    with jax.named_scope(FILLED_BLOCKS):
        return jax.lax.fori_loop(0, -(-segment.used // block), add, running)


def _block_of(segment: Segment, start: jax.Array, size: int) -> Segment:
    """The keys from `start` on. The last block is a whole one too: it reaches back, and sees no key a second time."""
    key_BKSC, value_BKSC = segment.key_value
    S = key_BKSC.shape[2]
    first = jnp.minimum(start, S - size)
    key_value = KeyValue(slice_axis(key_BKSC, first, size, 2), slice_axis(value_BKSC, first, size, 2))
    mask_BTS = None if segment.mask_BTS is None else slice_axis(segment.mask_BTS, first, size, 2)
    if S % size:
        new_S = first + jnp.arange(size) >= start
        mask_BTS = new_S[None, None] if mask_BTS is None else mask_BTS & new_S[None, None]
    return Segment(key_value, mask_BTS)


def _add_block(running: _Running, q_BKTGC: jax.Array, segment: Segment) -> _Running:
    # Before its first visible key a query collects the masked ones; what it collected is then scaled to zero.
    score_BKTGS = _score(q_BKTGC, segment)
    max_BKTG1 = jnp.maximum(running.max_BKTG1, jnp.max(score_BKTGS, axis=-1, keepdims=True))
    scale_BKTG1 = jnp.exp(running.max_BKTG1 - max_BKTG1)
    weight_BKTGS = jnp.exp(score_BKTGS - max_BKTG1)
    return _Running(
        max_BKTG1,
        running.total_BKTG1 * scale_BKTG1 + jnp.sum(weight_BKTGS, axis=-1, keepdims=True),
        running.out_BKTGC * scale_BKTG1 + _weighted(weight_BKTGS, segment.key_value.value_BKSC),
    )


def _weighted(weight_BKTGS: jax.Array, value_BKSC: jax.Array) -> jax.Array:
    return einsum("bktgs,bksc->bktgc", weight_BKTGS.astype(value_BKSC.dtype), value_BKSC).astype(jnp.float32)


def _score(q_BKTGC: jax.Array, segment: Segment) -> jax.Array:
    # fp32: the softmax is the reference's fp32 softmax.
    score_BKTGS = einsum("bktgc,bksc->bktgs", q_BKTGC, segment.key_value.key_BKSC).astype(jnp.float32)
    if segment.mask_BTS is None:
        return score_BKTGS
    return jnp.where(segment.mask_BTS[:, None, :, None], score_BKTGS, MASKED)
