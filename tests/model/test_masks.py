"""Who may attend to whom, against matrices written out."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from dgemma_jax import cache as kv
from dgemma_jax.config import FULL, SLIDING
from dgemma_jax.model import masks
from dgemma_jax.model.attention import KeyValue


def matrix(picture: str) -> np.ndarray:
    """Rows are queries; # is a key that the query sees."""
    return np.array([[mark == "#" for mark in row] for row in picture.split()])


def wrapped_cache(slots: int, length: int) -> kv.Cache:
    """A ring and a full layer that hold `length` tokens of one row."""
    layers = tuple(KeyValue(jnp.zeros((1, 1, size, 2)), jnp.zeros((1, 1, size, 2))) for size in (slots, 12))
    return kv.Cache(layers, jnp.array([length]), (SLIDING, FULL))


def test_the_encoder_is_causal() -> None:
    wanted = matrix("#.... ##... ###.. ####. #####")
    np.testing.assert_array_equal(masks.encoder_self(5, None, None)[0], wanted)


def test_a_window_holds_that_many_keys_with_the_token_itself() -> None:
    wanted = matrix("#..... ##.... ###... .###.. ..###. ...###")
    np.testing.assert_array_equal(masks.encoder_self(6, None, 3)[0], wanted)


def test_soft_tokens_of_one_image_see_each_other_beyond_the_window() -> None:
    is_soft = jnp.array([[False, True, True, True, False, True, True]])
    blocks = masks.image_blocks(is_soft)
    np.testing.assert_array_equal(blocks, [[-1, 0, 0, 0, -1, 1, 1]])
    in_window = matrix("#...... ####... .###... .###... ...##.. ....### .....##")
    np.testing.assert_array_equal(masks.encoder_self(7, blocks, 2)[0], in_window)
    in_full = matrix("#...... ####... ####... ####... #####.. ####### #######")
    np.testing.assert_array_equal(masks.encoder_self(7, blocks, None)[0], in_full)


def test_images_are_numbered_in_each_row_apart() -> None:
    is_soft = jnp.array([[True, False, True], [False, True, True]])
    np.testing.assert_array_equal(masks.image_blocks(is_soft), [[0, -1, 1], [-1, 0, 0]])


def test_a_wrapped_ring_holds_the_last_positions() -> None:
    positions = kv.key_positions(wrapped_cache(slots=6, length=8))
    np.testing.assert_array_equal(positions[SLIDING], [[6, 7, 2, 3, 4, 5]])
    np.testing.assert_array_equal(positions[FULL], [[0, 1, 2, 3, 4, 5, 6, 7, -1, -1, -1, -1]])


def test_a_ring_that_is_not_full_has_empty_slots() -> None:
    np.testing.assert_array_equal(kv.key_positions(wrapped_cache(slots=6, length=2))[SLIDING], [[0, 1, -1, -1, -1, -1]])
    np.testing.assert_array_equal(kv.key_positions(wrapped_cache(slots=6, length=0))[SLIDING], [[-1] * 6])


def test_new_tokens_see_the_wrapped_ring_as_far_as_their_window_reaches() -> None:
    where = kv.key_positions(wrapped_cache(slots=6, length=8))
    queries = jnp.array([[8, 9, 10]])
    # The slots hold positions 6 7 2 3 4 5; with a window of 6, query 8 sees 3 to 7, query 9 sees 4 to 7, ...
    wanted = matrix("##.### ##..## ##...#")
    np.testing.assert_array_equal(masks.encoder_past(where[SLIDING], queries, 6)[0], wanted)
    np.testing.assert_array_equal(masks.encoder_past(where[FULL], queries, None)[0], matrix("########.... " * 3))


def test_all_canvas_rows_see_the_same_window_less_one_keys() -> None:
    where = kv.key_positions(wrapped_cache(slots=6, length=8))
    seen = masks.canvas_masks(where, jnp.array([8]), 6)
    np.testing.assert_array_equal(seen[SLIDING].past_BTS[0], matrix("##.###"))  # one row stands for every query
    np.testing.assert_array_equal(seen[FULL].past_BTS[0], matrix("########...."))
    assert seen[SLIDING].self_BTT is None and seen[FULL].self_BTT is None, "the canvas sees all of itself"


def test_the_published_window_is_1023_prefix_tokens() -> None:
    where = jnp.arange(5000)[None]
    assert int(masks.canvas_past(where, jnp.array([5000]), 1024).sum()) == 1023
    assert int(masks.canvas_past(where[:, :700], jnp.array([700]), 1024).sum()) == 700


def test_training_canvases_see_what_they_see_when_generated() -> None:
    """Two canvases of two tokens behind a prompt of three, two noise copies of the first, window 3."""
    block, copy = jnp.array([0, 0, 1, 1, 0, 0]), jnp.array([0, 0, 0, 0, 1, 1])
    seen = masks.block_diffusion_masks(jnp.array([3]), block, copy, canvas_length=2, S=7, window=3)
    full = matrix("###.... ###.... #####.. #####.. ###.... ###....")
    sliding = matrix(".##.... .##.... ...##.. ...##.. .##.... .##....")
    own = matrix("##.... ##.... ..##.. ..##.. ....## ....##")
    np.testing.assert_array_equal(seen[FULL].past_BTS[0], full)
    np.testing.assert_array_equal(seen[SLIDING].past_BTS[0], sliding)
    np.testing.assert_array_equal(seen[SLIDING].self_BTT[0], own)
