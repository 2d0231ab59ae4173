"""Attention over blocks of keys: as over all of them at once, and over no more of them than there are."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import ROUNDING

from dgemma_jax import cache as kv
from dgemma_jax.config import FULL, SLIDING, LayerType
from dgemma_jax.model import attention, masks
from dgemma_jax.model.attention import KeyValue, Segment, attend
from tools.module_cost import matrix_flops

B, T, H, K, C = 2, 5, 4, 2, 8


def numbers(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def segments(cached: int, with_mask: bool) -> list[Segment]:
    """A cache of which the first row holds nothing and the second almost all, and the tokens themselves."""
    cache = KeyValue(numbers(1, B, K, cached, C), numbers(2, B, K, cached, C))
    own = KeyValue(numbers(3, B, K, T, C), numbers(4, B, K, T, C))
    filled = jnp.arange(cached)[None, None] < jnp.array([0, cached - 1])[:, None, None]
    causal = jnp.tril(jnp.ones((T, T), bool))[None] if with_mask else None
    return [Segment(cache, filled), Segment(own, causal)]


# Blocks that divide the cache and that do not; the tokens themselves cut into blocks too; a block of one key.
@pytest.mark.parametrize("block", [1, 3, 4, 16, 30])
@pytest.mark.parametrize("with_mask", [False, True])
def test_blocks_of_keys_change_nothing(block: int, with_mask: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    q = numbers(5, B, T, H, C)
    whole = attend(q, segments(32, with_mask))
    monkeypatch.setattr(attention, "MOST_SCORES", 0)
    monkeypatch.setattr(attention, "LEAST_BLOCK", block)
    blocks = attend(q, segments(32, with_mask))
    np.testing.assert_allclose(blocks, whole, rtol=0, atol=ROUNDING)
    assert (np.asarray(blocks) != np.asarray(whole)).any(), "the order of sums is meant to be another"


SLOTS = {FULL: 33, SLIDING: 22}
"""Of a cache; neither a multiple of the blocks below."""


def cached(kind: LayerType, length_B: list[int], fill: float = 1e3) -> list[Segment]:
    """A cache of rows of these lengths, with `fill` in empty slots, and a canvas behind it."""
    layer = KeyValue(numbers(1, B, K, SLOTS[kind], C), numbers(2, B, K, SLOTS[kind], C))
    cache = kv.Cache((layer,), jnp.array(length_B), (kind,))
    where = kv.key_positions(cache)
    mask = masks.canvas_masks(where, cache.length_B, SLOTS[SLIDING])[kind]
    held = (where[kind] >= 0)[:, None, :, None]
    past = KeyValue(*(jnp.where(held, x_BKSC, fill) for x_BKSC in layer))
    return [Segment(past, mask.past_BTS, mask.used), segments(1, False)[1]]


_run = jax.jit(lambda q, segments: attend(q, segments))


def in_blocks(segments: list[Segment]) -> np.ndarray:
    """Attention in blocks of four keys, compiled once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "MOST_SCORES", 0)
        patch.setattr(attention, "LEAST_BLOCK", 4)
        return np.asarray(_run(numbers(5, B, T, H, C), segments))


def every_block(segments: list[Segment]) -> list[Segment]:
    return [segments[0]._replace(used=None), segments[1]]


@pytest.mark.parametrize("kind", [FULL, SLIDING])
def test_blocks_that_no_row_has_filled_are_left_out_and_change_no_bit(kind: LayerType) -> None:
    """Rows of any length, empty ones too; a ring that has wrapped is full."""
    ends = [(0, 0), (0, 33), (22, 23), (4, 8), (5, 1)]
    for lengths in ends + np.random.default_rng(0).integers(0, 34, (12, 2)).tolist():
        found = cached(kind, list(lengths))
        assert found[0].used == min(max(lengths), SLOTS[kind])
        np.testing.assert_array_equal(in_blocks(found), in_blocks(every_block(found)), str(lengths))


@pytest.mark.parametrize("kind", [FULL, SLIDING])
@pytest.mark.parametrize("length", [0, 4, 8, 20])
def test_what_lies_in_empty_blocks_is_not_read(kind: LayerType, length: int) -> None:
    """Not a number times zero would still be not a number. (These lengths end where a block does.)"""
    spoilt = cached(kind, [length, length], fill=np.nan)
    np.testing.assert_array_equal(in_blocks(spoilt), in_blocks(cached(kind, [length, length])))
    assert np.isnan(in_blocks(every_block(spoilt))).all()


@pytest.mark.parametrize("kind", [FULL, SLIDING])
@pytest.mark.parametrize("length", [0, 1, 13])
def test_a_row_gets_the_same_bits_beside_any_other(kind: LayerType, length: int) -> None:
    short, long = (in_blocks(cached(kind, [length, other])) for other in (length, 33))
    np.testing.assert_array_equal(short[0], long[0])


def test_arithmetic_grows_with_the_blocks_that_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "MOST_SCORES", 256 * T * H)
    compiled = compiled_over(2**12, "float32", counted=True).as_text()
    one, two = (matrix_flops(compiled, scopes={attention.FILLED_BLOCKS: blocks}) for blocks in (1, 2))
    assert one == two - one == 2 * 2 * T * H * 256 * C
    assert matrix_flops(compiled_over(2**12, "float32", counted=False).as_text()) == 16 * one


def compiled_over(slots: int, dtype: str, *, counted: bool) -> jax.stages.Compiled:
    """Attention to a cache of so many slots, told or not how many of them are used."""
    cache = jax.ShapeDtypeStruct((1, K, slots, C), jnp.dtype(dtype))
    q = jax.ShapeDtypeStruct((1, T, H, C), jnp.dtype(dtype))
    mask = jax.ShapeDtypeStruct((1, 1, slots), jnp.dtype(bool))
    used = jax.ShapeDtypeStruct((), jnp.dtype("int32")) if counted else None
    run = jax.jit(lambda q, segment: attend(q, [segment]))
    return run.lower(q, Segment(KeyValue(cache, cache), mask, used)).compile()


@pytest.mark.parametrize("counted", [False, True])
def test_scores_of_a_long_context_take_bounded_memory(counted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "MOST_SCORES", 256 * T * H)

    def temporary(slots: int, dtype: str) -> int:
        return compiled_over(slots, dtype, counted=counted).memory_analysis().temp_size_in_bytes

    for dtype in ("float32", "bfloat16"):
        assert temporary(2**16, dtype) < temporary(2**12, dtype) + 2**16, "the mask apart, nothing grows"
