"""Pictures: which files are read, how they come out, and how they become patches."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dgemma_jax.config import ProcessorConfig
from dgemma_jax.media.error import MediaError
from dgemma_jax.media.image import MOST_PIXELS, patches_bytes, read_image, soft_token_budgets, to_patches

PUBLISHED = ProcessorConfig()
SMALL = ProcessorConfig(patch_size=8, pooling_kernel_size=2, max_soft_tokens=16)
PIXELS = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
PICTURE = Image.fromarray(PIXELS)


def file(image: Image.Image = PICTURE, kind: str = "PNG", **options: Any) -> bytes:
    written = io.BytesIO()
    image.save(written, kind, **options)
    return written.getvalue()


FILES = {
    "PNG": file(),
    "JPEG": file(kind="JPEG"),
    "GIF": file(kind="GIF"),
    "WEBP": file(kind="WEBP", lossless=True),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_of_each_format_comes_out_as_rgb(kind: str) -> None:
    image = read_image(FILES[kind])
    assert (image.mode, image.size) == ("RGB", (32, 24))
    if kind in ("PNG", "WEBP"):
        np.testing.assert_array_equal(np.asarray(image), PIXELS)


@pytest.mark.parametrize("kind", ["BMP", "TIFF", "PPM", "ICO"])
def test_other_formats_are_refused_by_what_they_begin_with(kind: str) -> None:
    data = file(kind=kind)
    with pytest.raises(MediaError, match=r"wanted a GIF, JPEG, PNG or WebP image, found .* begin b'"):
        read_image(data)


def test_no_bytes_are_no_image() -> None:
    with pytest.raises(MediaError, match="found no bytes"):
        read_image(b"")


def test_the_first_frame_of_an_animation_is_read() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for kind in ("GIF", "WEBP", "PNG"):
        image = read_image(file(frames[0], kind, save_all=True, append_images=frames[1:], duration=100))
        red, green, blue = image.getpixel((4, 4))
        assert red > 240 and green < 15 and blue < 15, kind


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_turned_upright(orientation: int) -> None:
    upright = np.zeros((16, 24), np.uint8)
    upright[:8, :8] = 255  # white in the upper left corner
    lie = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: np.transpose,
        6: np.rot90,
        7: lambda a: np.rot90(a, 2).T,
        8: lambda a: np.rot90(a, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(lie(upright))).convert("RGB")
    np.testing.assert_array_equal(np.asarray(read_image(file(stored, exif=exif)))[..., 0], upright)


def test_damaged_notes_do_not_spoil_a_sound_picture() -> None:
    data = file(exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12")
    np.testing.assert_array_equal(np.asarray(read_image(data)), PIXELS)


def test_transparency_lies_over_white() -> None:
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    half = Image.new("RGBA", (4, 4), (0, 0, 0, 128))
    grey = Image.new("LA", (4, 4), (0, 0))
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([0, 0, 0, 9, 9, 9])
    key = Image.new("RGB", (4, 4), (1, 2, 3))
    white = (255, 255, 255)
    assert read_image(file(clear)).getpixel((0, 0)) == white
    assert read_image(file(half)).getpixel((0, 0)) == (127, 127, 127)
    assert read_image(file(grey)).getpixel((0, 0)) == white
    assert read_image(file(palette, transparency=0)).getpixel((0, 0)) == white
    assert read_image(file(palette, "GIF", transparency=0)).getpixel((0, 0)) == white
    assert read_image(file(key, transparency=(1, 2, 3))).getpixel((0, 0)) == white


def test_palettes_greys_and_bits_keep_their_colours() -> None:
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 10, 200, 30])
    assert read_image(file(palette)).getpixel((0, 0)) == (10, 200, 30)
    assert read_image(file(Image.new("L", (4, 4), 77))).getpixel((0, 0)) == (77, 77, 77)
    assert read_image(file(Image.new("1", (4, 4), 1))).getpixel((0, 0)) == (255, 255, 255)


def test_16_bit_grey_is_scaled_and_not_clipped() -> None:
    deep = Image.fromarray(np.asarray([[0, 0x7FFF, 0x8000, 0xFFFF]], np.uint16))
    grey = np.asarray(read_image(file(deep)))[0, :, 0]
    assert grey.tolist() == [0, 127, 128, 255]


def test_a_print_photo_in_cmyk_is_read() -> None:
    red, green, blue = read_image(file(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG")).getpixel((4, 4))
    assert red > 240 and green < 15 and blue < 15


@pytest.mark.parametrize("kind", FILES)
def test_a_cut_file_is_refused(kind: str) -> None:
    whole = FILES[kind]
    for size in (1, 9, len(whole) // 4, len(whole) // 2, len(whole) * 3 // 4):
        with pytest.raises(MediaError, match=r"damaged or cut short|wanted a GIF"):
            read_image(whole[:size])


@settings(derandomize=True, deadline=None, database=None, max_examples=200)
@given(kind=st.sampled_from(sorted(FILES)), place=st.floats(0, 0.999), junk=st.binary(min_size=1, max_size=6))
def test_a_damaged_file_gives_an_image_or_a_refusal(kind: str, place: float, junk: bytes) -> None:
    data = FILES[kind]
    at = int(place * len(data))
    with contextlib.suppress(MediaError):
        assert read_image(data[:at] + junk + data[at + len(junk) :], most_pixels=10**6).mode == "RGB"


def test_a_bomb_is_refused_by_its_head() -> None:
    claims = struct.pack(">II", 20_000, 20_000)
    head = FILES["PNG"]
    with pytest.raises(MediaError, match=r"too large: .*400000000"):
        read_image(_with_png_head(head, claims))
    with pytest.raises(MediaError, match="wanted at most 100 pixels, found 32 x 24"):
        read_image(head, most_pixels=100)
    assert MOST_PIXELS == 2 * Image.MAX_IMAGE_PIXELS  # type: ignore[operator]


def _with_png_head(data: bytes, sides: bytes) -> bytes:
    head = b"IHDR" + sides + data[24:29]
    return data[:12] + head + struct.pack(">I", zlib.crc32(head)) + data[33:]


def test_webp_takes_twice_the_room() -> None:
    written = io.BytesIO()
    Image.new("RGB", (40, 30)).save(written, "WEBP")
    assert read_image(written.getvalue(), 2400).size == (40, 30)
    with pytest.raises(MediaError, match="wanted at most 1199 pixels, found 40 x 30"):
        read_image(written.getvalue(), 2399)


@pytest.mark.parametrize("size", [(1, 1), (20_000, 1), (1, 20_000), (20_000, 30)])
def test_extreme_sides_are_read_and_fit_their_budget(size: tuple[int, int]) -> None:
    patches = to_patches(read_image(file(Image.new("RGB", size, "green"))), PUBLISHED)
    assert 1 <= patches.soft_tokens <= 280
    assert len(patches.patches_NP) == len(patches.position_N2) == 9 * patches.soft_tokens


@settings(derandomize=True, deadline=None, database=None, max_examples=100)
@given(
    width=st.integers(1, 300),
    height=st.integers(1, 300),
    budget=st.integers(1, 40),
    patch=st.integers(1, 9),
    pool=st.integers(1, 4),
)
def test_patches_cover_a_grid_within_any_budget(width: int, height: int, budget: int, patch: int, pool: int) -> None:
    processor = ProcessorConfig(patch_size=patch, pooling_kernel_size=pool, max_soft_tokens=budget)
    made = to_patches(Image.new("RGB", (width, height), "white"), processor)
    assert 1 <= made.soft_tokens <= budget
    assert made.patches_NP.shape == (made.soft_tokens * pool**2, 3 * patch**2)
    columns, rows = made.position_N2.max(axis=0) + 1
    assert columns % pool == rows % pool == 0
    assert made.position_N2.tolist() == [[x, y] for y in range(rows) for x in range(columns)]
    assert made.patches_NP.min() == made.patches_NP.max() == 1


def test_a_patch_holds_its_pixels_by_row_column_and_colour() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    made = to_patches(Image.fromarray(pixels), SMALL)  # just its budget: not resized
    assert made.soft_tokens == 16 and made.patches_NP.dtype == np.float32 and made.position_N2.dtype == np.int32
    for patch_P, (x, y) in zip(made.patches_NP, made.position_N2, strict=True):
        expected = pixels[8 * y : 8 * y + 8, 8 * x : 8 * x + 8].reshape(-1)
        np.testing.assert_array_equal(patch_P, (expected / 255).astype(np.float32))


def test_a_budget_can_be_chosen_for_one_image() -> None:
    image = Image.new("RGB", (640, 480))
    counts = [to_patches(image, PUBLISHED, budget).soft_tokens for budget in soft_token_budgets(PUBLISHED)]
    assert counts == [63, 130, 266, 540, 1064]
    with pytest.raises(MediaError, match="at least one soft token"):
        to_patches(image, PUBLISHED, 0)


@pytest.mark.parametrize("processor", [SMALL, PUBLISHED])
def test_the_largest_picture_of_a_budget_takes_the_memory_that_is_foretold(processor) -> None:
    side = 30 * processor.patch_size * processor.pooling_kernel_size
    for budget in (9, 16):
        made = to_patches(Image.new("RGB", (side, side)), processor, budget)
        assert made.soft_tokens == budget
        assert made.patches_NP.nbytes + made.position_N2.nbytes == patches_bytes(processor, budget)


def test_budgets_are_those_the_checkpoint_was_trained_with() -> None:
    assert soft_token_budgets(PUBLISHED) == (70, 140, 280, 560, 1120)
    assert soft_token_budgets(SMALL) == (16,)


def test_without_resizing_only_whole_cells_within_the_budget_are_accepted() -> None:
    processor = dataclasses.replace(SMALL, do_resize=False)
    assert to_patches(Image.new("RGB", (32, 48)), processor).soft_tokens == 6
    for size in ((33, 48), (8, 16), (16, 17 * 16)):
        with pytest.raises(MediaError, match="does not resize images: wanted sides that are multiples of 16"):
            to_patches(Image.new("RGB", size), processor)
