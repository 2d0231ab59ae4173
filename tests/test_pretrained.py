"""What the public functions refuse, and how the refusal reads; how images are placed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from golden import reading

import dgemma_jax
from dgemma_jax.buckets import capacity_bucket, prefill_bucket, prefill_chunk
from dgemma_jax.model.vision import pool

TOKENS = np.ones((2, 3), np.int64)


@pytest.fixture(scope="module")
def model() -> dgemma_jax.Model:
    return reading.model("window6", backend="all_experts")


@pytest.fixture(scope="module")
def image() -> reading.Arrays:
    golden = reading.case("window6", "logits", "image")
    return {"tokens": golden["tokens"], **reading.images(golden)}


@pytest.mark.parametrize(
    ("tokens", "says"),
    [
        (np.ones(3, np.int64), r"integers of shape \[batch, length\], found int64 \(3,\)"),
        (np.ones((2, 0), np.int64), r"found int64 \(2, 0\)"),
        (np.ones((1, 3)), r"found float64 \(1, 3\)"),
        ([[1, 97]], r"in \[0, 97\), found 1 to 97"),
        ([[-1, 5]], r"in \[0, 97\), found -1 to 5"),
        (np.ones((1, 257), np.int64), "257 tokens do not fit the model's 256 positions"),
    ],
)
def test_prompts_that_cannot_be_read(tokens: Any, says: str, model: dgemma_jax.Model) -> None:
    with pytest.raises(ValueError, match=says):
        model.prefill(tokens)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"patches": None}, "patches and patch_positions must be given together"),
        ({"patch_positions": None}, "patches and patch_positions must be given together"),
        ({"patches": None, "patch_positions": None}, "tokens hold 9 image tokens, but no patches were given"),
        ({"patches": np.zeros((1, 90, 47))}, r"\[images, patches, 48\], found \[1, 90, 47\]"),
        ({"patches": np.zeros((90, 48))}, r"found \[90, 48\]"),
        ({"patches": np.full((1, 90, 48), 255)}, r"must be in \[0, 1\], found 255.0 to 255.0"),
        ({"patches": np.full((1, 90, 48), np.nan)}, r"must be in \[0, 1\], found nan"),
        ({"patch_positions": np.zeros((1, 89, 2))}, r"must have shape \[1, 90, 2\], found \[1, 89, 2\]"),
        ({"patches": np.zeros((1, 80, 48)), "patch_positions": np.zeros((1, 80, 2))}, "must be a multiple of 9"),
        ({"patch_positions": np.full((1, 90, 2), 24)}, r"in \[-1, 24\)"),
        ({"patch_positions": np.zeros((1, 90, 2))}, "image 0 must cover a grid .* found 90 patches within 1 x 1"),
        ({"tokens": np.ones((2, 20), np.int64)}, r"tokens hold images of \[\] .* make images of \[9\]"),
    ],
)
def test_images_that_do_not_fit(
    change: dict[str, Any], says: str, model: dgemma_jax.Model, image: reading.Arrays
) -> None:
    with pytest.raises(ValueError, match=says):
        model.prefill(**{**image, **change})


def test_a_model_without_vision_refuses_images_and_has_no_image_token(image: reading.Arrays) -> None:
    text_only = reading.model("text_only", backend="expert_blocks")
    with pytest.raises(ValueError, match="no vision tower"):
        text_only.prefill(TOKENS, patches=image["patches"], patch_positions=image["patch_positions"])
    text_only.prefill([[text_only.config.image_token_id] * 3] * 2)


def test_a_canvas_that_does_not_fit_the_cache(model: dgemma_jax.Model) -> None:
    cache = model.prefill(TOKENS)
    with pytest.raises(ValueError, match="canvas has 1 rows, the cache has 2"):
        model.commit(cache, [[1] * 8])
    with pytest.raises(ValueError, match=r"previous_logits must have shape \(2, 8, 97\), found \(2, 8, 96\)"):
        model.denoise_logits(cache, np.ones((2, 8), np.int64), np.zeros((2, 8, 96)))
    with pytest.raises(ValueError, match=r"canvas must be in \[0, 97\), found 97 to 97"):
        model.denoise_logits(cache, np.full((2, 8), 97))
    with pytest.raises(ValueError, match="259 tokens do not fit the model's 256 positions"):
        model.commit(cache, np.ones((2, 256), np.int64))


def test_a_canvas_for_other_rows_than_the_cache_is_refused(model: dgemma_jax.Model) -> None:
    with pytest.raises(ValueError, match="canvas has 1 rows, the cache has 2"):
        model.denoise_logits(model.prefill(TOKENS), [[1] * 8])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"dtype": "bf16"}, 'dtype must be "bfloat16" or "float32", found \'bf16\''),
        ({"dtype": "float16"}, 'dtype must be "bfloat16" or "float32", found \'float16\''),
        ({"backend": "fastest"}, "one of .*all_experts.*, found 'fastest'"),
    ],
)
def test_load_refuses_what_it_does_not_do(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        dgemma_jax.load(reading.FOLDER / "window6", **arguments)


def test_load_names_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="missing does not exist"):
        dgemma_jax.load(tmp_path / "missing")


def test_a_pass_is_padded_to_the_next_of_few_sizes_and_a_canvas_not_at_all() -> None:
    lengths = {1: 128, 128: 128, 129: 256, 256: 256, 257: 512, 1024: 1024, 1025: 2048}
    assert {length: prefill_bucket(length, 256) for length in lengths} == lengths


def test_a_pass_is_on_a_cpu_no_longer_than_a_canvas() -> None:
    assert [prefill_chunk(canvas, "cpu") for canvas in (32, 256)] == [128, 256]
    assert prefill_chunk(32, "gpu") == 1024


def test_a_cache_never_has_less_room_than_needed_nor_more_than_the_model_has_positions() -> None:
    assert [capacity_bucket(needed, 10**6) for needed in (1, 512, 513, 2049)] == [512, 512, 2048, 8192]
    assert capacity_bucket(513, 700) == 700


def test_pooling_averages_squares_of_patches_row_by_row() -> None:
    """Four by two patches of one number each, and as many of padding, whose numbers must not matter."""
    numbers = jnp.arange(8.0)
    positions = jnp.array([[(x, y) for y in range(2) for x in range(4)] + [(-1, -1)] * 8])
    x_INW = jnp.concatenate([numbers, jnp.full(8, 1e6)])[None, :, None]
    pooled, real = pool(x_INW, positions, positions[..., 0] >= 0, 2)
    assert pooled[0, :, 0].tolist() == [(0 + 1 + 4 + 5) / 4, (2 + 3 + 6 + 7) / 4, 0, 0]
    assert real.tolist() == [[True, True, False, False]]
