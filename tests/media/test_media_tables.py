"""Tables of an MP4 file that speak of more samples than any video has are refused before ffmpeg makes room for them."""

from __future__ import annotations

import io
import struct

import av
import numpy as np
import pytest
from films import film

from dgemma_jax.media.container import container
from dgemma_jax.media.error import MediaError
from dgemma_jax.media.mp4_tables import MOST_SAMPLES, require_few_samples

MANY = 20_000_000


def recording(fragmented: bool = False, codec: str = "aac") -> bytes:
    """Ten frames and some sound."""
    file = io.BytesIO()
    options = {"movflags": "frag_keyframe+empty_moov"} if fragmented else {}
    with av.open(file, "w", format="mov" if codec != "aac" else "mp4", options=options) as out:
        picture, sound = out.add_stream("h264", rate=10), out.add_stream(codec, rate=48000)
        picture.width = picture.height = 64
        silence = av.AudioFrame.from_ndarray(np.zeros((2, 48000), np.float32), format="fltp", layout="stereo")
        silence.rate = 48000
        frames = [av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24") for _ in range(10)]
        for stream, pictures in ((picture, frames), (sound, [silence])):
            for frame in (*pictures, None):
                out.mux(stream.encode(frame))
    return file.getvalue()


def patched(data: bytes, table: bytes, *numbers: int, track: int = 0) -> bytes:
    """The `track`-th table of this name with other numbers behind its version and flags."""
    at = -1
    for _ in range(track + 1):
        at = data.index(table, at + 1)
    changed = bytearray(data)
    struct.pack_into(f">{len(numbers)}I", changed, at + 8, *numbers)
    return bytes(changed)


@pytest.mark.parametrize("data", [recording(), recording(True), recording(codec="pcm_s16le"), film(30)])
def test_the_tables_of_a_recording_pass(data: bytes) -> None:
    require_few_samples(data)


BOMBS = {
    "pictures": patched(recording(), b"stsz", 1, MANY),
    "sound": patched(recording(), b"stsz", 1, MANY, track=1),
    "a fragment": patched(recording(fragmented=True), b"trun", MANY),
    "a chunk": patched(recording(), b"stsc", 1, 1, 2**32 - 1, 1, track=1),
    "chunks": patched(patched(recording(), b"stsc", 1, 1, 2**20, 1, track=1), b"stco", 2**20),
    "a table that is all names": b"\0\0\0\x10ftypisom\0\0\0\0" + b"stsc\0\0\0\0\xff\xff\xff\xff" * 500_000,
}


@pytest.mark.parametrize("data", BOMBS.values(), ids=BOMBS)
def test_tables_of_more_samples_than_any_video_has_are_refused(data: bytes) -> None:
    with pytest.raises(MediaError, match=f"tables are too long: wanted at most {MOST_SAMPLES} samples"):
        container(data)


def test_compressed_tables_are_refused() -> None:
    with pytest.raises(MediaError, match="tables are not compressed"):
        container(recording().replace(b"moov", b"cmov"))


def test_what_stands_in_the_media_themselves_is_no_table() -> None:
    table = b"stsz" + b"\xff" * 12
    box = struct.pack(">I4s", 8 + len(table), b"mdat") + table
    large = struct.pack(">I4sQ", 1, b"mdat", 16 + len(table)) + table
    require_few_samples(recording() + box + large + box)
    for hidden in (recording() + table, struct.pack(">I4s", 4, b"mdat") + table):
        with pytest.raises(MediaError):
            require_few_samples(hidden)
