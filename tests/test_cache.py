"""The cache: however it was filled and however large it is, it holds the same."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import reading
from tolerances import REORDERED

import dgemma_jax
from dgemma_jax import buckets, compiled, pretrained
from dgemma_jax import cache as kv
from dgemma_jax.buckets import chunks
from dgemma_jax.config import FULL, SLIDING

WINDOW = 6


@pytest.fixture(scope="module")
def model() -> dgemma_jax.Model:
    return reading.model("window6", backend="all_experts")


@pytest.fixture(scope="module")
def golden() -> reading.Arrays:
    return reading.case("window6", "logits", "long")


def same(found: kv.Cache, wanted: kv.Cache) -> None:
    """The same keys and values at the same positions, as far as sliding layers still have them."""
    for key, value in reading.key_values(wanted, WINDOW).items():
        np.testing.assert_allclose(reading.key_values(found, WINDOW)[key], value, rtol=0, atol=REORDERED, err_msg=key)


def encode(model: dgemma_jax.Model, cache: kv.Cache, tokens: np.ndarray, count: list[int]) -> kv.Cache:
    padded = np.pad(tokens, ((0, 0), (0, 128 - tokens.shape[1])))
    return compiled.encode(*model.flat, cache, jnp.asarray(padded, jnp.int32), jnp.array(count))


@pytest.mark.parametrize("most", [3, 7, 20])
def test_a_prompt_read_in_chunks_fills_the_same_cache(
    most: int, model: dgemma_jax.Model, golden: reading.Arrays, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks shorter than the ring, longer than it, and several times as long."""
    whole = model.prefill(golden["tokens"])
    monkeypatch.setattr(pretrained, "prefill_chunk", lambda canvas_length, platform: most)
    chunked = model.prefill(golden["tokens"])
    same(chunked, whole)
    logits = [np.asarray(model.denoise_logits(cache, golden["canvas"])) for cache in (chunked, whole)]
    np.testing.assert_allclose(*logits, rtol=0, atol=REORDERED)


@pytest.mark.parametrize("case", ["two_images", "image_each"])
def test_chunks_with_images_fill_the_same_cache(
    case: str, model: dgemma_jax.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    golden = reading.case("window6", "logits", case)
    whole = model.prefill(golden["tokens"], **reading.images(golden))
    monkeypatch.setattr(pretrained, "prefill_chunk", lambda canvas_length, platform: 4)
    same(model.prefill(golden["tokens"], **reading.images(golden)), whole)


def test_chunks_cover_the_prompt_and_never_split_an_image() -> None:
    soft = np.zeros((2, 20), bool)
    soft[0, 3:9], soft[1, 8:10] = True, True
    spans = chunks(20, 4, soft)
    assert spans == [(0, 3), (3, 10), (10, 14), (14, 18), (18, 20)]  # both rows' images: 3 to 9, and 8 to 10
    assert chunks(10, 4, None) == [(0, 4), (4, 8), (8, 10)]
    assert chunks(1, 4, None) == [(0, 1)]


def test_the_ring_equals_a_cache_of_full_length(model: dgemma_jax.Model, golden: reading.Arrays) -> None:
    """The same window over slots that are never overwritten."""
    unlimited = dataclasses.replace(model.config.text, sliding_window=10**6)
    full = kv.empty(unlimited, 2, 256, model.dtype)
    ring = kv.empty(model.config.text, 2, 256, model.dtype)
    assert (full.slots(SLIDING), ring.slots(SLIDING)) == (256, WINDOW)
    for start in (0, 5, 12):
        part = golden["tokens"][:, start : start + 7]
        full, ring = (encode(model, cache, part, [part.shape[1]] * 2) for cache in (full, ring))
        same(ring, full)
    logits = [np.asarray(model.denoise_logits(cache, golden["canvas"])) for cache in (ring, full)]
    np.testing.assert_allclose(*logits, rtol=0, atol=REORDERED)


def test_growing_changes_nothing(model: dgemma_jax.Model, golden: reading.Arrays) -> None:
    small = model.prefill(golden["tokens"])
    large = compiled.grow(small, 512, WINDOW)
    assert (small.capacity, large.capacity) == (256, 512)
    for key, value in reading.key_values(small, WINDOW).items():
        np.testing.assert_array_equal(reading.key_values(large, WINDOW)[key], value)
    logits = [np.asarray(model.denoise_logits(cache, golden["canvas"])) for cache in (large, small)]
    np.testing.assert_allclose(*logits, rtol=0, atol=REORDERED)


def test_a_commit_that_does_not_fit_grows_the_cache(
    model: dgemma_jax.Model, golden: reading.Arrays, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = np.concatenate([golden["tokens"], golden["canvas"], golden["canvas"]], axis=1)
    wanted = model.prefill(text)
    monkeypatch.setattr(buckets, "SMALLEST_CAPACITY", 32)
    monkeypatch.setattr(buckets, "CAPACITY_STEP", 2)
    cache = model.commit(model.prefill(golden["tokens"]), golden["canvas"])
    assert cache.capacity == 32
    cache = model.commit(cache, golden["canvas"])
    assert cache.capacity == 64 and cache.length_B.tolist() == [21 + 16] * 2
    same(cache, wanted)


def test_padding_does_not_reach_the_cache(
    model: dgemma_jax.Model, golden: reading.Arrays, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = model.prefill(golden["tokens"])
    monkeypatch.setattr(buckets, "PREFILL_BUCKETS", (32,))
    same(model.prefill(golden["tokens"]), wanted)


def test_where_nothing_is_to_be_read_the_cache_stays_as_it_is(model: dgemma_jax.Model, golden: reading.Arrays) -> None:
    before, canvas = model.prefill(golden["tokens"]), jnp.asarray(golden["canvas"], jnp.int32)
    kept = jax.tree.map(np.array, before)
    passed = encode(model, before, golden["tokens"], [0, 0])
    after = compiled.commit(*model.flat, passed, canvas, jnp.array([True, True]))
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, after), kept)
    # Of rows that have ended beside one that has not, the shapes stay and so do the passes.
    longer = compiled.commit(*model.flat, after, canvas, jnp.array([True, False]))
    assert longer.length_B.tolist() == (kept.length_B + canvas.shape[1]).tolist()


def test_rows_of_different_lengths_are_each_read_to_their_own_end(
    model: dgemma_jax.Model, golden: reading.Arrays
) -> None:
    """A batch may hold rows of 9 and 4 tokens: what is behind a row's count is padding."""
    cache = encode(model, kv.empty(model.config.text, 2, 256, model.dtype), golden["tokens"][:, :9], [9, 4])
    assert cache.length_B.tolist() == [9, 4]
    for row, length in enumerate((9, 4)):
        alone = model.prefill(np.repeat(golden["tokens"][row : row + 1, :length], 2, axis=0))
        layers, length_B = jax.tree.map(lambda x, row=row: x[row : row + 1], (cache.layers, cache.length_B))
        one_row = kv.Cache(layers, length_B, cache.layer_types)
        for key, value in reading.key_values(alone, WINDOW).items():
            np.testing.assert_allclose(reading.key_values(one_row, WINDOW)[key][0], value[0], rtol=0, atol=REORDERED)


def numbered(first: int, count: int) -> kv.KeyValue:
    """Tokens whose keys and values are their numbers."""
    return kv.KeyValue(*(jnp.arange(first, first + count, dtype=jnp.float32).reshape(1, 1, count, 1),) * 2)


def of_slots(*slots: int) -> kv.Cache:
    """An empty cache of a ring and a full layer."""
    layers = tuple(kv.KeyValue(*(jnp.full((1, 1, count, 1), -1.0),) * 2) for count in slots)
    return kv.Cache(layers, jnp.array([0]), (SLIDING, FULL))


def test_of_more_tokens_than_slots_the_last_ones_stay() -> None:
    """Tokens 10 to 16 (17 is padding) into a ring of 3 and a full layer of 8."""
    cache = kv.append(of_slots(3, 8), (numbered(10, 8),) * 2, jnp.array([7]))
    assert cache.layers[0].key_BKSC.reshape(-1).tolist() == [16, 14, 15]
    assert cache.layers[1].value_BKSC.reshape(-1).tolist() == [10, 11, 12, 13, 14, 15, 16, -1]


def test_a_ring_shorter_than_the_window_grows_and_then_wraps() -> None:
    """Four slots under a window of 6, grown to 12 positions: the slots of the ring are 6, and hold the right ones."""
    cache = kv.append(of_slots(4, 4), (numbered(0, 3),) * 2, jnp.array([3]))
    cache = kv.grow(cache, 12, WINDOW)
    assert (cache.slots(SLIDING), cache.capacity) == (6, 12)
    cache = kv.append(cache, (numbered(3, 5),) * 2, jnp.array([5]))
    where = kv.key_positions(cache)[SLIDING]
    assert cache.layers[0].key_BKSC.reshape(-1).tolist() == where[0].tolist() == [6, 7, 2, 3, 4, 5]
