"""Media in a prompt: each placeholder becomes the soft tokens of a picture, or of a video's frames with their times.

    <|image|>  ->  <|image> <|image|> x n <image|>
    <|video|>  ->  mm:ss <|image> <|image|> x n <image|> mm:ss <|image> ...

Source: transformers' `processing_gemma4.py`. There, frames repeat `<|video|>`, whose places its model never fills;
here they repeat `<|image|>`: a frame is a picture to the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dgemma_jax.buckets import MOST_PATCHES, patch_bucket
from dgemma_jax.config import ModelConfig, VisionConfig
from dgemma_jax.media.error import MediaError
from dgemma_jax.media.patches import Patches, stacked
from dgemma_jax.media.video import stamp
from dgemma_jax.prompt.tokenizer import Tokenizer

MOST_PROMPT_PATCHES = 20 * MOST_PATCHES
"""Patches of all images and frames of a prompt, padded as the vision tower reads them: a gigabyte of numbers at 768 a
patch, and minutes of the tower on a small device. Sixteen videos of 32 frames, the most that a request may hold by
default, are 322,560."""
_VIDEO = "<|video|>"


@dataclass(frozen=True)
class Picture:
    """An image, cut into patches."""

    patches: Patches


@dataclass(frozen=True)
class Film:
    """A video: frames and the seconds at which they are seen."""

    frames: Sequence[tuple[float, Patches]]


@dataclass(frozen=True)
class ExpandedPrompt:
    """What `Model.prefill` reads, for one row: token ids, and the images that they hold."""

    tokens: list[int]
    images: tuple[Patches, ...] = ()

    @property
    def patches(self) -> np.ndarray | None:
        """All images [I, N, P], padded to the patches of the largest; None without. Made anew at every look."""
        return stacked(self.images)[0] if self.images else None

    @property
    def patch_positions(self) -> np.ndarray | None:
        """Their places [I, N, 2]; (-1, -1) is padding."""
        return stacked(self.images)[1] if self.images else None


def expand(
    ids: Sequence[int], media: Sequence[Picture | Film], config: ModelConfig, tokenizer: Tokenizer
) -> ExpandedPrompt:
    """Fills the placeholders of a prompt with `media`, in order.

    Raises MediaError when the placeholders are not as many as the media, or of other kinds, for a video without
    frames, and for images of more than `MOST_PROMPT_PATCHES`.
    """
    if config.vision is None:
        if media:
            raise MediaError(f"this checkpoint has no vision tower: it reads text only, found {_name(media)}")
        return ExpandedPrompt(list(ids))
    kinds: dict[int, type[Picture | Film]] = {config.image_token_id: Picture}
    if _VIDEO in tokenizer.special_tokens:
        kinds[tokenizer.special_tokens[_VIDEO]] = Film
    wanted = [kinds[index] for index in ids if index in kinds]
    if wanted != [type(medium) for medium in media]:
        places = ", ".join(kind.__name__.lower() for kind in wanted) or "none"
        raise MediaError(f"media do not fit the prompt's placeholders: wanted {places}; found {_name(media)}")
    images = tuple(image for medium in media for _, image in _images(medium))
    _require_few(images, config.vision)
    coming, tokens = iter(media), list[int]()
    for index in ids:
        tokens += _filled(next(coming), config, tokenizer) if index in kinds else [index]
    return ExpandedPrompt(tokens, images)


def _require_few(images: Sequence[Patches], vision: VisionConfig) -> None:
    cell = vision.patches_per_soft_token
    patches = sum(patch_bucket(len(image.patches_NP), cell) for image in images)
    if patches > MOST_PROMPT_PATCHES:
        raise MediaError(
            f"the images and video frames are too many or too large: wanted at most {MOST_PROMPT_PATCHES:,} patches, "
            f"found {patches:,} in {len(images):,} images and frames, each padded as the model reads it"
        )


def _name(media: Sequence[Picture | Film]) -> str:
    return ", ".join(type(medium).__name__.lower() for medium in media) or "none"


def _images(medium: Picture | Film) -> list[tuple[float, Patches]]:
    return [(0.0, medium.patches)] if isinstance(medium, Picture) else list(medium.frames)


def _filled(medium: Picture | Film, config: ModelConfig, tokenizer: Tokenizer) -> list[int]:
    tokens: list[int] = []
    images = _images(medium)
    if not images:
        raise MediaError("wanted a video with at least one frame, found none")
    for number, (seconds, image) in enumerate(images):
        if isinstance(medium, Film):
            tokens += tokenizer.encode_plain(f"{' ' if number else ''}{stamp(seconds)} ")
        tokens += [config.boi_token_id, *[config.image_token_id] * image.soft_tokens, config.eoi_token_id]
    return tokens
