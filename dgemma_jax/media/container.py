"""Which container a video file has, and whether all of it is there.

Decoders are lenient: of a file that is cut short they show what came and say nothing. The containers state their own
sizes, so a cut is found here, before anything is decoded, and so are tables that are longer than any video's.
"""

from __future__ import annotations

import struct

from dgemma_jax.media.error import MediaError
from dgemma_jax.media.mp4_tables import require_few_samples

_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
_BOXES = frozenset((b"ftyp", b"moov", b"mdat", b"moof", b"mfra", b"free", b"skip", b"wide", b"uuid", b"sidx", b"styp"))
_MOST_BOXES = 100_000  # an hour of one-second fragments has 7200; a walk over tiny boxes must end


def container(data: bytes) -> str:
    """The name of the demultiplexer, "mp4" or "matroska" (WebM). Raises MediaError for other and for cut files."""
    if data[4:8] == b"ftyp":
        name, stated = "mp4", _mp4_size(data)
    elif data[:4] == _EBML:
        name, stated = "matroska", _matroska_size(data)
    else:
        found = f"{len(data)} bytes that begin {data[:12]!r}" if data else "no bytes"
        raise MediaError(f"wanted an MP4 or WebM video, found {found}")
    if stated > len(data):
        raise MediaError(f"the video is cut short: wanted {stated} bytes, as the file says, found {len(data)}")
    if name == "mp4":
        require_few_samples(data)
    return name


def _mp4_size(data: bytes) -> int:
    """Where the last box that is known ends."""
    at = 0
    for _ in range(_MOST_BOXES):
        if at + 8 > len(data):
            break
        size, kind = struct.unpack_from(">I4s", data, at)
        if size == 1 and at + 16 <= len(data):
            size = struct.unpack_from(">Q", data, at + 8)[0]
        if size < 8 or kind not in _BOXES:  # 0: up to the end, whichever that is
            break
        at += size
    return at


def _matroska_size(data: bytes) -> int:
    """Where the segment, which holds everything, ends; 0 where a live recorder left it open."""
    head, at = _ebml_number(data, 4)
    at += head or 0
    if data[at : at + 4] != _SEGMENT:
        return 0
    size, at = _ebml_number(data, at + 4)
    return 0 if size is None else at + size


def _ebml_number(data: bytes, at: int) -> tuple[int | None, int]:
    """The number at `at`, None for "unknown", and where it ends. Leading zeros of the first byte give the length."""
    length = 9 - data[at].bit_length() if at < len(data) else 1
    value = int.from_bytes(data[at : at + length], "big") & ((1 << 7 * length) - 1)
    return (None if value == (1 << 7 * length) - 1 else value), at + length
