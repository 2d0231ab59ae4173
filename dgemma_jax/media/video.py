"""Videos: bytes of a file -> a few frames at even times.

    container -> timetable of all packets (nothing decoded) -> times to show -> groups of pictures that hold them

Sampling is transformers' (`default_sample_indices_fn`): of `total` frames the i-th of `n` is number i * total // n.
Where the frame rate varies, the same rule runs on the clock: the i-th is the frame on screen at i / n of the whole.
A video of fewer frames than wanted shows all of them. Frames are stamped with their own time, from zero on.
Only groups of pictures that hold a wanted frame are decoded, and only the wanted frames are kept.
"""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Iterator
from fractions import Fraction
from itertools import islice, pairwise
from typing import Any, NamedTuple

import av
from av.stream import Disposition
from PIL import Image

from dgemma_jax.config import ProcessorConfig
from dgemma_jax.media.container import container
from dgemma_jax.media.error import MediaError

CODECS = ("h264", "hevc", "vp8", "vp9", "av1", "mpeg4")

MOST_SECONDS = 3600
MOST_FRAMES = 250_000
"""An hour at 60 frames a second, and some."""

MOST_FRAME_PIXELS = 4096 * 2304
"""A frame of 4K video; 36 MiB of pixels each."""

MOST_DECODED_PIXELS = 2**35
"""Work for one video: 16,000 frames of 1080p, a few minutes of one core. Keyframes far apart cost the most."""

# PyAV before 19 refuses a video over a title that is no UTF-8, unless told otherwise; later ones know no such option.
_ANY_TITLE: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}

_TURNS = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}


class Frame(NamedTuple):
    """What a video shows at a time."""

    seconds: float
    image: Image.Image


class _Packet(NamedTuple):
    """One coded frame: when it is shown, and for how long, in ticks; None for one that is never shown."""

    shown: int | None
    ticks: int
    is_key: bool


def stamp(seconds: float) -> str:
    """A time as the model reads it: "mm:ss", fractions cut off."""
    return f"{int(seconds // 60):02d}:{int(seconds % 60):02d}"


def read_video(data: bytes, processor: ProcessorConfig) -> list[Frame]:
    """`iter_video`, all at once: up to `video_num_frames` images of the video's own size in memory."""
    return list(iter_video(data, processor))


def iter_video(data: bytes, processor: ProcessorConfig) -> Iterator[Frame]:
    """At most `processor.video_num_frames` frames of an MP4 or WebM file, upright, as RGB, one at a time in memory.

    Raises MediaError for other formats and codecs, damaged or cut files, and what exceeds the limits above.
    """
    name = container(data)
    try:
        with _opened(data, name) as file:
            stream = _stream(file)
            packets = list(islice(_timetable(file, stream), MOST_FRAMES + 1))
            start, tick = _check(packets, stream)
        wanted = _sample(packets, processor.video_num_frames)
        runs = _runs(packets, set(wanted))
        with _opened(data, name) as file:
            for shown, frame in _pick(_decode(file, runs), wanted):
                yield Frame(float((shown - start) * tick), _image(frame))
    except av.FFmpegError as error:
        raise MediaError(f"the video is damaged: {error.strerror}") from error


def _opened(data: bytes, name: str) -> av.container.InputContainer:
    # The format is given, never guessed: among ffmpeg's formats are playlists that name other files and addresses.
    return av.open(io.BytesIO(data), "r", format=name, **_ANY_TITLE)


def _stream(file: av.container.InputContainer) -> av.VideoStream:
    streams = [stream for stream in file.streams.video if not stream.disposition & Disposition.attached_pic]
    if not streams:
        raise MediaError("the video file holds no video, at most sound")
    # A stream of a codec that this build of ffmpeg does not know has no codec context.
    codec = streams[0].codec_context.codec.canonical_name if streams[0].codec_context else "an unknown codec"
    if codec not in CODECS:
        raise MediaError(f"wanted a video of codec {', '.join(CODECS)}, found {codec}")
    return streams[0]


def _timetable(file: av.container.InputContainer, stream: av.VideoStream) -> Iterator[_Packet]:
    """All packets in the order in which they are decoded."""
    for packet in _packets(file, stream):
        if packet.is_corrupt:
            raise MediaError("the video is damaged or cut short")
        yield _Packet(None if packet.is_discard else packet.pts, packet.duration or 0, packet.is_keyframe)


def _packets(file: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.Packet]:
    return (packet for packet in file.demux(stream) if packet.size)


def _check(packets: list[_Packet], stream: av.VideoStream) -> tuple[int, Fraction]:
    """The first time in ticks and the seconds of a tick, of a video within the limits."""
    times = [packet.shown for packet in packets if packet.shown is not None]
    if not times or stream.time_base is None:
        raise MediaError("the video has no frames")
    # av has a ratio of its own from release 19 on.
    tick = Fraction(stream.time_base.numerator, stream.time_base.denominator)
    seconds = float((max(times) - min(times)) * tick)
    if len(packets) > MOST_FRAMES or seconds > MOST_SECONDS:
        found = f"{seconds:.0f} seconds" if seconds > MOST_SECONDS else "more"
        raise MediaError(f"the video is too long: wanted at most {MOST_SECONDS} seconds, {MOST_FRAMES} frames; {found}")
    return min(times), tick


def _sample(packets: list[_Packet], count: int) -> list[int]:
    """Times of at most `count` frames, ascending."""
    shown = sorted({packet.shown: packet.ticks for packet in packets if packet.shown is not None}.items())
    times = [time for time, _ in shown]
    steps = [later - time for time, later in pairwise(times)]
    even = not steps or (max(steps) - min(steps) <= 1 and 2 * max(steps) <= 3 * min(steps))  # but for rounding
    clock = list(range(len(times))) if even else [time - times[0] for time in times]
    end = len(times) if even else clock[-1] + (shown[-1][1] or clock[-1] // len(steps))
    return sorted({times[bisect_right(clock, index * end // count) - 1] for index in range(count)})


def _runs(packets: list[_Packet], wanted: set[int]) -> list[tuple[int, int]]:
    """Spans of packets that must be decoded to see the wanted frames, each from a keyframe on."""
    runs: list[tuple[int, int]] = []
    before = key = 0
    for index, packet in enumerate(packets):
        if packet.is_key:
            before, key = key, index
        if packet.shown in wanted:
            key_shown = packets[key].shown
            # A frame that comes after a keyframe but is shown before it may lean on the group before.
            leading = key_shown is not None and packet.shown < key_shown
            start = before if leading else key
            if runs and start <= runs[-1][1]:
                runs[-1] = runs[-1][0], index + 1
            else:
                runs.append((start, index + 1))
    return runs


def _decode(file: av.container.InputContainer, runs: list[tuple[int, int]]) -> Iterator[av.VideoFrame]:
    """All frames of the runs, in the order in which they are shown."""
    stream = _stream(file)
    decoder = stream.codec_context
    # One thread: on damaged files the decoders of several frames at once crash the process (VP9 in ffmpeg 8).
    decoder.thread_type, decoder.thread_count = "NONE", 1
    _check_work(decoder.width * decoder.height, sum(stop - start for start, stop in runs))
    packets, position = _packets(file, stream), 0
    for start, stop in runs:
        for packet in islice(packets, start - position, stop - position):
            yield from decoder.decode(packet)
        yield from decoder.decode(None)  # what was held back for reordering
        decoder.flush_buffers()
        position = stop


def _check_work(pixels: int, frames: int) -> None:
    if pixels > MOST_FRAME_PIXELS:
        raise MediaError(f"the video's frames are too large: wanted at most {MOST_FRAME_PIXELS} pixels, found {pixels}")
    if pixels * frames > MOST_DECODED_PIXELS:
        raise MediaError(
            f"the video takes too long to decode: wanted at most {MOST_DECODED_PIXELS} pixels, "
            f"found {frames} frames of {pixels}; use a smaller picture, or keyframes nearer to each other"
        )


def _pick(frames: Iterator[av.VideoFrame], wanted: list[int]) -> Iterator[tuple[int, av.VideoFrame]]:
    """The frame at each wanted time, or, where the decoder drops it, the next one; and when it is shown."""
    missing = 0
    for frame in frames:
        if missing < len(wanted) and frame.pts is not None and frame.pts >= wanted[missing]:
            missing = bisect_right(wanted, frame.pts)
            yield frame.pts, frame
    if missing < len(wanted):
        raise MediaError(f"the video is damaged: only {missing} of {len(wanted)} frames could be decoded")


def _image(frame: av.VideoFrame) -> Image.Image:
    _check_work(frame.width * frame.height, 1)  # the size may change on the way
    turn = _TURNS.get(frame.rotation % 360)
    image = frame.to_image()
    return image if turn is None else image.transpose(turn)
