"""Videos made for the tests: frame n is a plain grey of shade 8 * n, so that a decoded frame tells its number."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

SHADES = 31  # numbers repeat from there on


def film(
    frames: int = 30,
    rate: int = 30,
    size: tuple[int, int] = (64, 48),
    container: str = "mp4",
    codec: str = "libx264",
    times: Sequence[int] | None = None,
    title: str = "",
    **options: Any,
) -> bytes:
    """The bytes of a video file; `times` are the frames' times in 1/1000 s, if not even."""
    tick = Fraction(1, 1000) if times else Fraction(1, rate)
    muxer = {name: options.pop(name) for name in ("movflags",) if name in options}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "film"  # a file: ffmpeg opens it twice to move its index to the front
        with av.open(path, "w", format=container, options=muxer) as file:
            file.metadata["title"] = title
            stream: Any = file.add_stream(codec, rate=rate, options=options)
            stream.width, stream.height = size
            stream.pix_fmt = "yuv420p"
            stream.codec_context.time_base = tick
            for number in range(frames):
                frame = av.VideoFrame.from_image(Image.new("RGB", size, (8 * (number % SHADES),) * 3))
                frame.pts, frame.time_base = times[number] if times else number, tick
                file.mux(stream.encode(frame))
            file.mux(stream.encode(None))
        return path.read_bytes()


def number(image: Image.Image) -> int:
    """Which frame this is."""
    return round(float(np.asarray(image).mean()) / 8)
