"""The one refusal of this package."""

from __future__ import annotations


class MediaError(ValueError):
    """A picture or video that cannot be read, is too large, or does not fit the prompt: what was wanted and found."""
