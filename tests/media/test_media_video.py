"""Videos: which files are read, which frames are shown, and that nothing else is decoded or kept."""

from __future__ import annotations

import contextlib
import io
import struct
from collections.abc import Iterator
from typing import Any

import av
import numpy as np
import pytest
from films import SHADES, film, number
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dgemma_jax.config import ProcessorConfig
from dgemma_jax.media import video
from dgemma_jax.media.error import MediaError
from dgemma_jax.media.video import read_video, stamp

FOUR = ProcessorConfig(video_num_frames=4)
MP4 = film()
STREAMED = film(movflags="faststart")
FRAGMENTED = film(movflags="frag_keyframe+empty_moov", g="10")
WEBM = film(container="webm", codec="libvpx-vp9")


def numbers(data: bytes, count: int = 4) -> list[int]:
    return [number(frame.image) for frame in read_video(data, ProcessorConfig(video_num_frames=count))]


@pytest.mark.parametrize(
    ("container", "codec"),
    [("mp4", "libx264"), ("mp4", "mpeg4"), ("webm", "libvpx"), ("webm", "libvpx-vp9"), ("mov", "libx264")],
)
def test_even_frames_of_each_format_are_shown_with_their_times(container: str, codec: str) -> None:
    frames = read_video(film(container=container, codec=codec), FOUR)
    assert [number(frame.image) for frame in frames] == [0, 7, 15, 22]
    np.testing.assert_allclose([frame.seconds for frame in frames], [0, 7 / 30, 15 / 30, 22 / 30], atol=0.001)
    assert all((frame.image.mode, frame.image.size) == ("RGB", (64, 48)) for frame in frames)


@settings(derandomize=True, deadline=None, database=None, max_examples=15)
@given(
    frames=st.integers(1, 31),
    count=st.integers(1, 40),
    rate=st.sampled_from([1, 12, 24, 30, 60]),
    gop=st.integers(1, 12),
    webm=st.booleans(),
)
def test_frames_are_sampled_as_transformers_does(frames: int, count: int, rate: int, gop: int, webm: bool) -> None:
    data = film(frames, rate, container="webm" if webm else "mp4", codec="libvpx" if webm else "libx264")
    shown = min(count, frames)  # transformers refuses more than there are; here all are shown
    assert numbers(data, count) == [index * frames // shown for index in range(shown)]


def test_a_long_video_is_decoded_only_near_its_sampled_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[Any] = []

    def watched(file: Any, runs: Any) -> Iterator[Any]:
        for frame in decode(file, runs):
            decoded.append(frame.pts)
            yield frame

    decode = video._decode
    monkeypatch.setattr(video, "_decode", watched)
    assert numbers(film(20 * SHADES, g="20", bf="2"), 5) == [index * 4 * SHADES % SHADES for index in range(5)]
    assert len(decoded) <= 5 * 20  # the groups of pictures that hold them, out of 620


@pytest.mark.parametrize("options", [{}, {"x264-params": "open-gop=1", "g": "6", "bf": "3"}, {"g": "1"}])
def test_every_frame_can_be_reached_wherever_the_keyframes_are(options: dict[str, str]) -> None:
    data = film(30, **options)
    for count in (3, 7, 30):
        assert numbers(data, count) == [index * 30 // count for index in range(count)]


def test_a_varying_frame_rate_is_sampled_by_the_clock() -> None:
    """One picture is on screen for nine tenths of the time, then ten follow quickly."""
    times = [0, *range(9000, 10_000, 100)]
    frames = read_video(film(11, times=times), ProcessorConfig(video_num_frames=10))
    assert [round(frame.seconds, 2) for frame in frames] == [0.0, 9.0]
    assert [number(frame.image) for frame in frames] == [0, 1]


def test_a_title_that_is_no_unicode_is_no_matter() -> None:
    titled = film(4, title="SHOWN")
    assert b"SHOWN" in titled
    assert numbers(titled.replace(b"SHOWN", b"S\xfcHN\xff")) == [0, 1, 2, 3]


def test_times_count_from_the_first_frame() -> None:
    frames = read_video(film(4, times=[5000, 6000, 7000, 8000]), FOUR)
    assert [frame.seconds for frame in frames] == [0, 1, 2, 3]


@pytest.mark.parametrize(("quarter", "size"), [(0, (64, 48)), (1, (48, 64)), (2, (64, 48)), (3, (48, 64))])
def test_a_phone_s_video_is_turned_upright(quarter: int, size: tuple[int, int]) -> None:
    """The file says by how much to turn clockwise, in the matrix of its track header."""
    data, (cos, sin) = bytearray(film(1)), [(1, 0), (0, 1), (-1, 0), (0, -1)][quarter]
    matrix = [cos << 16, sin << 16, 0, -sin << 16, cos << 16, 0, 0, 0, 1 << 30]
    struct.pack_into(">9i", data, data.index(b"tkhd") + 44, *matrix)
    assert read_video(bytes(data), FOUR)[0].image.size == size


def test_the_turn_is_clockwise() -> None:
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[:2, :2] = 255

    class Turned:
        width, height, rotation = 6, 4, -90

        def to_image(self) -> Image.Image:
            return Image.fromarray(pixels)

    turned = np.asarray(video._image(Turned()))  # type: ignore[arg-type]
    np.testing.assert_array_equal(turned, np.rot90(pixels, -1))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "wanted an MP4 or WebM video, found no bytes"),
        (b"\x89PNG\r\n\x1a\n....", "wanted an MP4 or WebM video, found 12 bytes that begin b'.x89PNG"),
        (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "wanted an MP4 or WebM video"),
        (b"\0\0\0\x18ftypisom" + bytes(12), "damaged"),
        (b"\x1a\x45\xdf\xa3" + bytes(40), "damaged"),
        (film(2, container="mp4", codec="mpeg2video"), "wanted a video of codec h264, .*, found mpeg2video"),
    ],
)
def test_what_is_no_video_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(MediaError, match=message):
        read_video(data, FOUR)


def test_a_file_of_sound_only_is_refused() -> None:
    written = io.BytesIO()
    with av.open(written, "w", format="mp4") as file:
        stream = file.add_stream("aac", rate=16_000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        sound.rate = 16_000
        file.mux(stream.encode(sound))
        file.mux(stream.encode(None))
    with pytest.raises(MediaError, match="holds no video"):
        read_video(written.getvalue(), FOUR)


@pytest.mark.parametrize("data", [MP4, STREAMED, WEBM], ids=["mp4", "streamed", "webm"])
def test_a_file_cut_anywhere_is_refused(data: bytes) -> None:
    for size in range(0, len(data) - 8, len(data) // 60):
        with pytest.raises(MediaError):
            read_video(data[:size], FOUR)


@settings(derandomize=True, deadline=None, database=None, max_examples=100)
@given(
    data=st.sampled_from([MP4, STREAMED, FRAGMENTED, WEBM]),
    place=st.floats(0, 0.999),
    junk=st.binary(min_size=1, max_size=8),
)
def test_a_damaged_file_gives_frames_or_a_refusal(data: bytes, place: float, junk: bytes) -> None:
    at = int(place * len(data))
    with contextlib.suppress(MediaError):
        assert len(read_video(data[:at] + junk + data[at + len(junk) :], FOUR)) <= 4


def test_limits_are_checked_before_anything_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    def refusal(name: str, limit: int) -> str:
        with monkeypatch.context() as patch, pytest.raises(MediaError) as refused:
            patch.setattr(video, name, limit)
            read_video(film(40, 10), FOUR)
        return str(refused.value)

    assert "too long: wanted at most 3 seconds" in refusal("MOST_SECONDS", 3)
    assert "too long: wanted at most 3600 seconds, 39 frames" in refusal("MOST_FRAMES", 39)
    assert "frames are too large: wanted at most 3071 pixels, found 3072" in refusal("MOST_FRAME_PIXELS", 3071)
    assert "takes too long to decode: wanted at most 3072 pixels" in refusal("MOST_DECODED_PIXELS", 3072)


@pytest.mark.parametrize(("seconds", "text"), [(0, "00:00"), (0.999, "00:00"), (61.5, "01:01"), (6000, "100:00")])
def test_a_stamp_is_minutes_and_whole_seconds(seconds: float, text: str) -> None:
    assert stamp(seconds) == text
