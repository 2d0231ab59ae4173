"""One image as the vision tower reads it: how many become an array and back, and what is checked and remembered."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dgemma_jax import GenerationConfig, ModelConfig, Request
from dgemma_jax.config import DIFFUSION_GEMMA_26B_A4B, VisionConfig
from dgemma_jax.engine.plan import plan
from dgemma_jax.inputs import check_images
from dgemma_jax.media import patches as module
from dgemma_jax.media.patches import Patches, split, stacked

KERNEL = 2
VISION = VisionConfig(
    hidden_size=8,
    intermediate_size=8,
    num_hidden_layers=1,
    num_attention_heads=1,
    num_key_value_heads=1,
    head_dim=8,
    patch_size=1,
    pooling_kernel_size=KERNEL,
    position_embedding_size=9,
)
CONFIG: ModelConfig = dataclasses.replace(DIFFUSION_GEMMA_26B_A4B, vision=VISION)
SOFT = CONFIG.image_token_id


def image(columns: int, rows: int, shade: float = 0.5) -> Patches:
    """Of so many soft tokens in a row and in a column."""
    places = [(x, y) for y in range(rows * KERNEL) for x in range(columns * KERNEL)]
    return Patches(np.full((len(places), 3), shade, np.float32), np.asarray(places, np.int32), columns * rows)


def tokens(*images: Patches) -> list[int]:
    return [5, *(token for one in images for token in [*[SOFT] * one.soft_tokens, 6])]


def test_an_array_of_images_and_the_images_are_one_thing() -> None:
    images = [image(2, 3, 0.25), image(1, 1), image(2, 2, 1.0)]
    made = split(*stacked(images, 28), KERNEL**2)
    assert [one.soft_tokens for one in made] == [6, 1, 4]
    for one, other in zip(made, images, strict=True):
        np.testing.assert_array_equal(one.patches_NP, other.patches_NP)
        np.testing.assert_array_equal(one.position_N2, other.position_N2)
        assert one.digest == other.digest


def test_padding_may_stand_anywhere() -> None:
    one = image(1, 1)
    patches_INP, positions_IN2 = stacked([one], 8)
    (made,) = split(np.roll(patches_INP, 3, axis=1), np.roll(positions_IN2, 3, axis=1), KERNEL**2)
    assert made.digest == one.digest


def test_an_image_is_known_by_its_numbers_and_its_shape() -> None:
    images = [image(1, 2), image(2, 1), image(1, 2, 0.25)]
    assert len({one.digest for one in images}) == 3
    assert image(1, 2).digest == images[0].digest


def test_what_is_known_of_an_image_is_found_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many choices a request has, and away from the engine's thread."""
    images = (image(1, 2).studied(), image(2, 2).studied())
    monkeypatch.setattr(module, "hashlib", None)
    request = Request(tokens=tuple(tokens(*images)), patches=images)
    keys = [plan(request, CONFIG, GenerationConfig(), 1000, 1024).keys_T for _ in range(8)]
    assert (keys[0] < 0).sum() == 6 and all((one == keys[0]).all() for one in keys)


def plainly_fits(places: list[tuple[int, int]]) -> bool:
    """As one would write it without numpy."""
    columns, rows = (max((place[axis] for place in places), default=-1) + 1 for axis in (0, 1))
    whole = columns % KERNEL == 0 and rows % KERNEL == 0
    return bool(places) and whole and sorted(places) == [(x, y) for x in range(columns) for y in range(rows)]


@settings(derandomize=True, deadline=None, database=None, max_examples=300)
@given(columns=st.integers(0, 5), rows=st.integers(0, 5), data=st.data())
def test_places_must_cover_a_grid_of_whole_soft_tokens(columns: int, rows: int, data: st.DataObject) -> None:
    grid = [(x, y) for x in range(columns) for y in range(rows)]
    places = data.draw(st.permutations(grid))
    for index in data.draw(st.sets(st.integers(0, 30), max_size=2)):
        if index < len(places):
            places[index] = data.draw(st.tuples(st.integers(-1, 5), st.integers(-1, 5)))
    if (-1, -1) in places:
        places.remove((-1, -1))
    one = Patches(np.zeros((len(places), 3)), np.asarray(places, np.int32).reshape(-1, 2), len(places) // KERNEL**2)
    if plainly_fits(places):
        assert check_images(CONFIG, np.asarray([tokens(one)]), [one], None) == (one,)
        return
    sides = " x ".join(str(max((place[axis] for place in places), default=-1) + 1) for axis in (0, 1))
    with pytest.raises(ValueError, match=f"image 0 must cover a grid .* found {len(places)} patches within {sides}"):
        check_images(CONFIG, np.asarray([tokens(one)]), [one], None)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (
            dataclasses.replace(image(1, 1), patches_NP=np.zeros((4, 5))),
            r"image 1 must have shapes \[\(4, 3\), \(4, 2\)\], found \[\(4, 5\), \(4, 2\)\]",
        ),
        (dataclasses.replace(image(1, 1), position_N2=np.zeros(4)), r"image 1 must have shapes .* \(4,\)\]"),
        (image(1, 1, 1.5), r"must be in \[0, 1\], found 1.5 to 1.5"),
        (image(1, 1, np.nan), r"must be in \[0, 1\], found nan"),
        (image(5, 1), r"must be in \[-1, 9\)"),
        (image(1, 3), r"hold images of \[1, 1\] soft tokens, .* make images of \[1, 3\]"),
    ],
)
def test_an_image_that_does_not_fit_is_named(wrong: Patches, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        check_images(CONFIG, np.asarray([tokens(image(1, 1), image(1, 1))]), [image(1, 1), wrong], None)


def test_separate_images_have_their_own_places() -> None:
    with pytest.raises(ValueError, match="`Patches` have their own"):
        check_images(CONFIG, np.asarray([tokens(image(1, 1))]), [image(1, 1)], image(1, 1).position_N2[None])
