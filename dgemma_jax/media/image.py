"""Pictures: bytes of a file -> RGB pixels -> patches for the vision tower.

Resizing follows transformers' Gemma 4 image processor: aspect ratio kept, sides whole soft tokens, bicubic.
`to_patches` equals its Pillow form (`Gemma4ImageProcessorPil`) to the bit. Its torchvision form filters with
coefficients of another precision: on fewer than one value in a hundred it differs, by at most 2 of 255.
Two things differ on purpose: transparent pixels lie over white (transformers shows whatever colour was left below
them), and no colour profile is applied by either.
"""

from __future__ import annotations

import io
import math
import warnings

import numpy as np
from PIL import Image

from dgemma_jax.config import ProcessorConfig
from dgemma_jax.media.error import MediaError
from dgemma_jax.media.patches import Patches

FORMATS = ("GIF", "JPEG", "PNG", "WEBP")

MOST_PIXELS = 178_956_970
"""Pillow's own limit, beyond which it opens nothing: 683 MiB of pixels. Reading such a picture takes up to three
times that."""

PUBLISHED_BUDGETS = (70, 140, 280, 560, 1120)
"""Soft tokens per image that the published model was trained with."""

_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image(data: bytes, most_pixels: int = MOST_PIXELS) -> Image.Image:
    """The picture of a GIF (its first frame), JPEG, PNG or WebP file, upright, as RGB.

    Raises MediaError for other formats, damaged or cut files, and more than `most_pixels` pixels, of WebP half as many:
    the size is known from the head of the file, so that nothing large is decoded in vain.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks, among them one on pictures of half its limit
        image = _open(data)
        width, height = image.size
        if image.format == "WEBP":
            most_pixels //= 2  # its decoder holds three canvases of its own
        if width * height > most_pixels:
            raise MediaError(f"the image is too large: wanted at most {most_pixels} pixels, found {width} x {height}")
        try:
            image.load()
            return _upright(image)
        except Exception as error:  # decoders that are fed nonsense raise whatever they stumble over
            raise MediaError(f"the {image.format} image is damaged or cut short: {error}") from error


def to_patches(image: Image.Image, processor: ProcessorConfig, soft_tokens: int | None = None) -> Patches:
    """Cuts a picture into patches, resized so that it makes at most `soft_tokens` (None: the checkpoint's own number).

    Patches come row by row; the values of one are in the order (row, column, colour).
    """
    budget = processor.max_soft_tokens if soft_tokens is None else soft_tokens
    size, pool = processor.patch_size, processor.pooling_kernel_size
    image = to_rgb(image)
    columns, rows = _grid(image, processor, budget)
    wanted = columns * pool * size, rows * pool * size
    if image.size != wanted:
        image = image.resize(wanted, Image.Resampling.BICUBIC)
    # A table of the 256 values, rounded once from float64, as the reference rounds each product.
    shades = (np.arange(256) * processor.rescale_factor).astype(np.float32)
    pixels = np.asarray(image).reshape(rows * pool, size, columns * pool, size, 3)
    patches_NP = shades[pixels.transpose(0, 2, 1, 3, 4).reshape(-1, 3 * size**2)]
    x, y = np.tile(np.arange(columns * pool), rows * pool), np.repeat(np.arange(rows * pool), columns * pool)
    return Patches(patches_NP, np.stack([x, y], axis=1).astype(np.int32), columns * rows)


def patches_bytes(processor: ProcessorConfig, soft_tokens: int) -> int:
    """The most memory that the patches of a picture of so many soft tokens take."""
    values, places = 3 * processor.patch_size**2, 2
    return soft_tokens * processor.pooling_kernel_size**2 * 4 * (values + places)


def soft_token_budgets(processor: ProcessorConfig) -> tuple[int, ...]:
    """The numbers of soft tokens that an image may be given, ascending: those the checkpoint was trained with."""
    own = processor.max_soft_tokens
    return PUBLISHED_BUDGETS if own in PUBLISHED_BUDGETS else (own,)


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow image as RGB, with what is transparent over white."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        # 16-bit grey: Pillow would clip it; the high byte is what Pillow takes of 16-bit colours.
        image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    if not image.has_transparency_data:
        return image.convert("RGB")
    colours = image.convert("RGBA")
    flat = Image.new("RGB", image.size, "white")
    flat.paste(colours, mask=colours.getchannel("A"))
    return flat


def _open(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise MediaError(f"the image is too large: {error}") from error
    except Image.UnidentifiedImageError as error:
        found = f"{len(data)} bytes that begin {data[:12]!r}" if data else "no bytes"
        raise MediaError(f"wanted a GIF, JPEG, PNG or WebP image, found {found}") from error
    except Exception as error:  # as in read_image
        raise MediaError(f"the image is damaged or cut short: {error}") from error


def _upright(image: Image.Image) -> Image.Image:
    try:
        turn = _UPRIGHT.get(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # damaged notes about a sound picture; as browsers do, show it as it is
        turn = None
    rgb = to_rgb(image)
    return rgb if turn is None else rgb.transpose(turn)


def _grid(image: Image.Image, processor: ProcessorConfig, budget: int) -> tuple[int, int]:
    """Columns and rows of soft tokens."""
    cell = processor.patch_size * processor.pooling_kernel_size
    width, height = image.size
    if budget < 1 or not width or not height:
        raise MediaError(f"wanted a picture for at least one soft token, found {width} x {height} for {budget}")
    if processor.do_resize:
        return _fit(width, height, cell, budget)
    columns, rows = width // cell, height // cell
    if width % cell or height % cell or columns * rows > budget:
        raise MediaError(
            f"this checkpoint does not resize images: wanted sides that are multiples of {cell} and at most "
            f"{budget} squares of that side, found {width} x {height}"
        )
    return columns, rows


def _fit(width: int, height: int, cell: int, budget: int) -> tuple[int, int]:
    """The largest grid of at most `budget` cells in about the picture's aspect ratio, by the reference's formula."""
    factor = math.sqrt(budget * cell**2 / (width * height))
    columns, rows = math.floor(factor * width / cell), math.floor(factor * height / cell)
    # A strip thinner than one cell becomes one cell thin.
    if rows == 0:
        return max(1, min(width // height, budget)), 1
    if columns == 0:
        return 1, max(1, min(height // width, budget))
    return columns, rows
