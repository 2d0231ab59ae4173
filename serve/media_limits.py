"""What a medium that a request names may cost, and where it may come from."""

from __future__ import annotations

import dataclasses
from typing import Literal

Kind = Literal["image", "video"]

_OF_ANY_KIND = ("application/octet-stream", "binary/octet-stream")
"""What servers say that do not know; the second is S3's word for it."""


class UnfitMediaError(Exception):
    """Why a medium cannot be had: what was wanted and found. Clients read it, so it never holds a resolved address."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MediaLimits:
    """Bounds on one medium. Bytes are counted as they come: what a server announces does not matter."""

    max_bytes_image: int = 20 * 2**20
    """OpenAI's bound; photographs are 2 to 10 MiB."""
    max_bytes_video: int = 64 * 2**20
    """Minutes of H.264 at the sizes the model sees; a data URL of this size does not fit a default request body."""
    timeout_image: float = 5.0
    """Seconds for all of one fetch: finding, connecting, redirects, and the last byte."""
    timeout_video: float = 30.0
    max_redirects: int = 3
    allowed_domains: tuple[str, ...] = ()
    """If any, only these hosts and their subdomains, at every hop."""
    allow_private: bool = False
    """Also connect to private and loopback addresses; those of clouds' metadata stay refused."""

    def max_bytes(self, kind: Kind) -> int:
        """The most bytes of a medium of this kind."""
        return self.max_bytes_image if kind == "image" else self.max_bytes_video

    def timeout(self, kind: Kind) -> float:
        """The most seconds that fetching a medium of this kind takes."""
        return self.timeout_image if kind == "image" else self.timeout_video


def require_size(size: int, limit: int) -> None:
    """Raises UnfitMediaError for more bytes than the limit."""
    if size > limit:
        raise UnfitMediaError(f"wanted at most {limit} bytes, found more")


def require_kind(media_type: str, kind: Kind) -> None:
    """Raises UnfitMediaError for a media type that contradicts the kind; the bytes themselves have the last word."""
    fits = media_type.startswith(f"{kind}/") or media_type in _OF_ANY_KIND
    if not (fits or (kind == "video" and media_type == "application/mp4")):
        raise UnfitMediaError(f"wanted a media type {kind}/*, found {media_type[:80]!r}")
