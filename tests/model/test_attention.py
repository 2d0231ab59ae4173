"""Attention over blocks of keys against attention over all of them at once."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import ROUNDING

from dgemma_jax.model import attention
from dgemma_jax.model.attention import KeyValue, Segment, attend

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


def test_scores_of_a_long_context_take_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "MOST_SCORES", 256 * T * H)

    def temporary(slots: int, dtype: str) -> int:
        cache = jax.ShapeDtypeStruct((1, K, slots, C), jnp.dtype(dtype))
        q = jax.ShapeDtypeStruct((1, T, H, C), jnp.dtype(dtype))
        mask = jax.ShapeDtypeStruct((1, 1, slots), jnp.dtype(bool))
        run = jax.jit(lambda q, k, v, mask: attend(q, [Segment(KeyValue(k, v), mask)]))
        return run.lower(q, cache, cache, mask).compile().memory_analysis().temp_size_in_bytes

    for dtype in ("float32", "bfloat16"):
        assert temporary(2**16, dtype) < temporary(2**12, dtype) + 2**16, "the mask apart, nothing grows"
