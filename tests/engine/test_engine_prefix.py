"""Which caches of earlier prompts serve a new one, and which leave first."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from engine.hand_device import CONFIG, GENERATION

from dgemma_jax import cache as kv
from dgemma_jax.buckets import PREFILL_CHUNK
from dgemma_jax.config import VisionConfig
from dgemma_jax.engine.events import Request
from dgemma_jax.engine.plan import plan
from dgemma_jax.engine.prefix import Entry, PrefixStore, Reuse, common_prefix

WINDOW = CONFIG.text.sliding_window


def entry(keys: list[int], ends: tuple[int, ...], capacity: int = 16, pictured: bool = False) -> Entry:
    return Entry(kv.empty(CONFIG.text, 1, capacity, jnp.dtype("float32")), np.asarray(keys), ends, pictured)


def found(store: PrefixStore, keys: list[int], ends: tuple[int, ...] = (), pictured: bool = False) -> int:
    best = store.find(np.asarray(keys), ends, pictured)
    return 0 if best is None else best.length


def store(*entries: Entry, reuse: Reuse = "any", most: int = 10**6) -> PrefixStore:
    made = PrefixStore(most, reuse)
    for one in entries:
        made.put(one)
    return made


def test_any_reuse_takes_the_longest_common_prefix() -> None:
    held = store(entry([1, 2, 3], (3,)), entry([1, 2, 5, 6], (4,)))
    assert found(held, [1, 2, 3, 4]) == 3
    assert found(held, [1, 2, 5, 9]) == 3
    assert found(held, [1, 2, 5, 6, 7]) == 4
    assert found(held, [9, 2, 3]) == 0


def test_a_ring_that_has_wrapped_serves_only_its_own_length() -> None:
    keys = list(range(1, WINDOW + 2))
    held = store(entry(keys, (len(keys),)))
    assert found(held, [*keys, 40]) == len(keys)
    assert found(held, [*keys[:-1], 40]) == 0
    assert found(store(entry(keys[:WINDOW], (WINDOW,))), [*keys[: WINDOW - 1], 40]) == WINDOW - 1


def test_exact_reuse_takes_what_was_cut_in_the_same_places() -> None:
    held = store(entry([1, 2, 3, 4], (2, 4)), reuse="exact")
    assert found(held, [1, 2, 3, 4], (2, 4)) == 4
    assert found(held, [1, 2, 3, 4, 5], (2, 4, 5)) == 4
    assert found(held, [1, 2, 3, 4, 5], (2, 5)) == 2
    assert found(held, [1, 2, 3, 9], (2, 4)) == 2
    assert found(held, [1, 2, 3, 4], (3, 4)) == 0, "a later cut is worth nothing after one that differs"
    assert found(held, [1, 2, 3, 4], (2, 4), pictured=True) == 0, "images are read by another program"


def test_nothing_is_kept_without_reuse() -> None:
    assert found(store(entry([1, 2], (2,)), reuse="off"), [1, 2, 3], (2, 3)) == 0


def test_the_least_recently_used_leaves_first_and_the_bytes_are_never_more() -> None:
    one, two, three = (entry([n, n], (2,)) for n in (1, 2, 3))
    held = store(one, two, most=2 * one.bytes)
    assert held.bytes == 2 * one.bytes
    assert found(held, [1, 1, 1]) == 2
    held.put(three)
    assert held.bytes == 2 * one.bytes
    assert [found(held, [n, n]) for n in (1, 2, 3)] == [2, 0, 2]
    held.put(entry([1, 1], (2,), capacity=4096))
    assert found(held, [1, 1]) == 2, "what can never fit does not drive others out"


def test_the_same_prompt_is_kept_once() -> None:
    held = store(entry([1, 2], (2,)), entry([1, 2], (2,)))
    assert held.bytes == entry([1, 2], (2,)).bytes


@pytest.fixture
def keys_of():
    vision = VisionConfig(
        hidden_size=4, intermediate_size=4, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1,
        head_dim=4, patch_size=2, pooling_kernel_size=1, position_embedding_size=8,
    )  # fmt: skip
    config = type(CONFIG)(
        text=CONFIG.text, vision=vision, canvas_length=4, image_token_id=40, boi_token_id=41, eoi_token_id=42
    )

    def make(*shades: float, padding: int = 0) -> np.ndarray:
        """Keys of a prompt with a 3 x 1 image of each shade."""
        tokens = [7, *(t for _ in shades for t in (41, 40, 40, 40, 42))]
        patches = np.stack([np.full((3 + padding, 12), shade, np.float32) for shade in shades])
        places = np.full((len(shades), 3 + padding, 2), -1)
        places[:, :3] = [[0, 0], [1, 0], [2, 0]]
        request = Request(tokens=tuple(tokens), patches=patches, patch_positions=places)
        return plan(request, config, GENERATION, 4096, PREFILL_CHUNK).keys_T

    return make


def test_images_are_the_same_only_if_they_look_the_same(keys_of) -> None:
    one = keys_of(0.25, 0.5)
    np.testing.assert_array_equal(one, keys_of(0.25, 0.5))
    np.testing.assert_array_equal(one, keys_of(0.25, 0.5, padding=2))
    assert common_prefix(one, keys_of(0.25, 0.75)) == 7, "up to the second image"
    assert common_prefix(one, keys_of(0.5, 0.25)) == 2
    assert (one[[2, 3, 4]] < 0).all() and (one[[0, 1, 5, 6]] >= 0).all()


def test_a_prefix_never_ends_inside_an_image() -> None:
    held = store(entry([5, -7, -8, -9], (4,)))
    assert found(held, [5, -7, -8, -9, 6]) == 4
    assert found(held, [5, -7, -8, -3, 6]) == 1
