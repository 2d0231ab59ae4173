"""Pictures drawn by the generator itself: one to four plain shapes on a plain background, as a value and as pixels.

A `Scene` says everything about its picture, colour jitter and grain included, so the same scene always renders to the
same pixels and a question about the picture can be answered from the scene. The functions below choose its parts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

Size = tuple[int, int]
RGB = tuple[int, int, int]

KINDS = ("circle", "square", "triangle", "star")
PALETTE: dict[str, RGB] = {
    "red": (220, 30, 30),
    "green": (30, 150, 50),
    "blue": (30, 70, 220),
    "yellow": (250, 230, 40),
    "orange": (245, 125, 15),
    "purple": (130, 40, 170),
    "black": (15, 15, 15),
    "white": (245, 245, 245),
    "pink": (250, 130, 175),
    "brown": (120, 70, 30),
}
COLOURS = tuple(PALETTE)
GREY: RGB = (155, 155, 155)  # for backgrounds only: next to a shaded white or black shape it has no clear name
_JITTER = 8
_CLEAR = 125  # RGB distance from which a shape stands out: pink on white does (134), brown on black does not (119)
_OVERSAMPLING = 2
_STAR_WAIST = 0.45  # fatter than a true pentagram, so that 14 pixels still show five points


class Paint(NamedTuple):
    """A colour's name and the shade of it that this scene uses."""

    name: str
    rgb: RGB


class Spot(NamedTuple):
    """Where something lies: its middle and its side, in pixels."""

    x: float
    y: float
    size: float


@dataclass(frozen=True)
class Shape:
    """A shape in its bounding square of side `size` around (x, y), in pixels."""

    kind: str
    colour: Paint
    x: float
    y: float
    size: float


@dataclass(frozen=True)
class Background:
    """A plain colour; `slope` lights the picture from left to right, `grain` seeds slight noise."""

    colour: Paint
    slope: int = 0
    grain: int | None = None


@dataclass(frozen=True)
class Scene:
    """A picture before it is drawn; `size` is (width, height)."""

    size: Size
    background: Background
    shapes: tuple[Shape, ...]

    def render(self) -> Image.Image:
        """The picture in RGB, with smooth edges."""
        width, height = self.size
        image = Image.new("RGB", (width * _OVERSAMPLING, height * _OVERSAMPLING), self.background.colour.rgb)
        pen = ImageDraw.Draw(image)
        for shape in self.shapes:
            _draw(pen, shape)
        return _light(image.reduce(_OVERSAMPLING), self.background)


def _draw(pen: ImageDraw.ImageDraw, shape: Shape) -> None:
    x, y, half = (_OVERSAMPLING * value for value in (shape.x, shape.y, shape.size / 2))
    rgb = shape.colour.rgb
    match shape.kind:
        case "circle":
            pen.ellipse((x - half, y - half, x + half, y + half), fill=rgb)
        case "square":
            side = 0.88 * half  # a full square would be known by its size alone
            pen.rectangle((x - side, y - side, x + side, y + side), fill=rgb)
        case "triangle":
            pen.polygon([(x, y - half), (x - half, y + half), (x + half, y + half)], fill=rgb)
        case _:
            radii = (half, _STAR_WAIST * half) * 5
            turns = [math.pi * corner / 5 for corner in range(10)]
            corners = zip(radii, turns, strict=True)
            pen.polygon([(x + r * math.sin(turn), y - r * math.cos(turn)) for r, turn in corners], fill=rgb)


def _light(image: Image.Image, background: Background) -> Image.Image:
    if not background.slope and background.grain is None:
        return image
    pixels_HWC = np.asarray(image, np.int16)
    height, width, _ = pixels_HWC.shape
    if background.slope:
        slope_W = np.linspace(-background.slope, background.slope, width).astype(np.int16)
        pixels_HWC = pixels_HWC + slope_W[None, :, None]
    if background.grain is not None:
        noise = np.frombuffer(Random(background.grain).randbytes(pixels_HWC.size), np.uint8)
        pixels_HWC = pixels_HWC + (noise.reshape(height, width, 3) >> 4).astype(np.int16) - 8
    return Image.fromarray(pixels_HWC.clip(0, 255).astype(np.uint8))


def draw_size(rng: Random) -> Size:
    """Mostly square; one in ten is 4:3 or 3:4."""
    if rng.random() < 0.9:
        side = rng.randint(64, 96)
        return side, side
    long = rng.randrange(84, 100, 4)
    short = long * 3 // 4
    return (long, short) if rng.random() < 0.5 else (short, long)


def draw_paint(rng: Random, name: str) -> Paint:
    """One shade of the colour."""
    red, green, blue = (min(max(v + rng.randint(-_JITTER, _JITTER), 0), 255) for v in PALETTE.get(name, GREY))
    return Paint(name, (red, green, blue))


def clear_backgrounds(colours: Iterable[str]) -> list[str]:
    """The colours on which shapes of `colours` all stand out; where many leave none, the one that comes closest."""
    shown = [PALETTE[colour] for colour in colours]
    contrast = {name: min(math.dist(PALETTE.get(name, GREY), rgb) for rgb in shown) for name in (*COLOURS, "grey")}
    return [name for name, least in contrast.items() if least >= _CLEAR] or [max(contrast, key=contrast.__getitem__)]


def draw_background(rng: Random, colours: Iterable[str], *, plain: bool = False) -> Background:
    """White half of the time, otherwise any colour that suits shapes of `colours`; `plain`: evenly lit, no grain."""
    names = clear_backgrounds(colours)
    colour = draw_paint(rng, "white" if "white" in names and rng.random() < 0.5 else rng.choice(names))
    if plain or rng.random() < 0.7:
        return Background(colour)
    if rng.random() < 0.5:
        return Background(colour, slope=rng.choice((-14, -9, 9, 14)))
    return Background(colour, grain=rng.getrandbits(32))


def draw_spots(rng: Random, size: Size, count: int) -> list[Spot]:
    """Places for `count` shapes that do not touch: anywhere for one, in cells of a loose grid for two to nine."""
    width, height = size
    short = min(size)
    if count == 1:
        side = rng.uniform(0.25, 0.5) * short
        half = side / 2 + 1
        return [Spot(rng.uniform(half, width - half), rng.uniform(half, height - half), side)]
    grid = rng.choice((2, 2, 3)) if count <= 4 else 3
    cells = rng.sample([(column, row) for column in range(grid) for row in range(grid)], count)
    return [_in_cell(rng, (width / grid, height / grid), cell, short) for cell in cells]


def _in_cell(rng: Random, cell_size: tuple[float, float], cell: tuple[int, int], short: int) -> Spot:
    side = rng.uniform(0.24 * short, 0.86 * min(cell_size))
    x, y = (
        (index + 0.5) * length + rng.uniform(-1, 1) * ((length - side) / 2 - 0.5)
        for index, length in zip(cell, cell_size, strict=True)
    )
    return Spot(x, y, side)


def compose(
    rng: Random, size: Size, pairs: Sequence[tuple[str, str]], spots: Sequence[Spot], *, plain: bool = False
) -> Scene:
    """The (colour, kind) pairs at their spots, one shade a colour, on a background that suits them."""
    paints = {colour: draw_paint(rng, colour) for colour, _ in pairs}
    shapes = tuple(Shape(kind, paints[colour], *spot) for (colour, kind), spot in zip(pairs, spots, strict=True))
    return Scene(size, draw_background(rng, paints, plain=plain), shapes)


def draw_scene(rng: Random, pairs: Sequence[tuple[str, str]]) -> Scene:
    """The (colour, kind) pairs wherever they fit."""
    size = draw_size(rng)
    return compose(rng, size, pairs, draw_spots(rng, size, len(pairs)))
