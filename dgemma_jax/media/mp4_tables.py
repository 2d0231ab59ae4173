"""How many samples the tables of an MP4 file speak of. ffmpeg makes a 24-byte record of each, and a table may say with
twelve bytes that there are a billion of them: so they are counted before it opens the file.

    ftyp  moov{... stsz stsc stco ...}  moof{... trun ...}  mdat     all but `mdat`, which holds no tables, is searched

ffmpeg finds tables wherever they stand, so they are looked for by their names, not by their place.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

from dgemma_jax.media.error import MediaError

MOST_SAMPLES = 2_000_000
"""Frames of picture and sound in a file, about 50 MiB of records: ten hours, or 40 seconds of uncompressed sound."""

_TABLE = re.compile(rb"stsz|stz2|trun|stsc|stco|co64|cmov")
_LONGEST_CHUNK = 1024
"""Samples of uncompressed sound that become one record, of those that lie together."""


def require_few_samples(data: bytes) -> None:
    """Raises MediaError for tables of more than `MOST_SAMPLES`, and for tables that are compressed."""
    samples = chunks = runs = together = 0
    for start, stop in _outside_of_media(data):
        for table in _TABLE.finditer(data, start, stop):
            at, name = table.end() + 4, table.group()  # behind version and flags
            match name:
                case b"stsz" | b"stz2":
                    samples += _number(data, at + 4)
                case b"trun":
                    samples += _number(data, at)
                case b"stco" | b"co64":
                    chunks += _number(data, at)
                case b"stsc":
                    runs += (entries := min(_number(data, at), (stop - at) // 12))
                    _require_few(runs)
                    together = max(
                        together, max((_number(data, at + 8 + 12 * run) for run in range(entries)), default=0)
                    )
                case _:
                    raise MediaError("wanted a video whose tables are not compressed")
            _require_few(max(samples, chunks * together // _LONGEST_CHUNK))


def _require_few(samples: int) -> None:
    if samples > MOST_SAMPLES:
        raise MediaError(f"the video's tables are too long: wanted at most {MOST_SAMPLES} samples, found more")


def _outside_of_media(data: bytes) -> Iterator[tuple[int, int]]:
    """Spans of the file that may hold tables."""
    at = start = 0
    while at + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        if size == 1 and at + 16 <= len(data):
            size = struct.unpack_from(">Q", data, at + 8)[0]
        if size == 0:
            size = len(data) - at
        if size < 8:
            break
        if kind == b"mdat":
            yield start, at
            start = at + size
        at += size
    yield start, len(data)


def _number(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 4], "big")
