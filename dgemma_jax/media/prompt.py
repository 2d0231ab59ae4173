"""Media in a prompt: each placeholder becomes the soft tokens of a picture, or of a video's frames with their times.

    <|image|>  ->  <|image> <|image|> x n <image|>
    <|video|>  ->  mm:ss <|image> <|image|> x n <image|> mm:ss <|image> ...

Source: transformers' `processing_gemma4.py`. There, frames repeat `<|video|>`, whose places its model never fills;
here they repeat `<|image|>`: a frame is a picture to the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dgemma_jax.config import ModelConfig
from dgemma_jax.media.error import MediaError
from dgemma_jax.media.image import Patches
from dgemma_jax.media.video import stamp
from dgemma_jax.prompt.tokenizer import Tokenizer

_VIDEO = "<|video|>"


@dataclass(frozen=True)
class Picture:
    """An image, cut into patches."""

    patches: Patches


@dataclass(frozen=True)
class Film:
    """A video: frames and the seconds at which they are seen."""

    frames: Sequence[tuple[float, Patches]]


class ExpandedPrompt(NamedTuple):
    """What `Model.prefill` reads, for one row: token ids, and all images padded to one number of patches, or None."""

    tokens: list[int]
    patches: np.ndarray | None
    patch_positions: np.ndarray | None


def expand(
    ids: Sequence[int], media: Sequence[Picture | Film], config: ModelConfig, tokenizer: Tokenizer
) -> ExpandedPrompt:
    """Fills the placeholders of a prompt with `media`, in order.

    Raises MediaError when the placeholders are not as many as the media, or of other kinds, and for a video without
    frames.
    """
    if config.vision is None:
        if media:
            raise MediaError(f"this checkpoint has no vision tower: it reads text only, found {_name(media)}")
        return ExpandedPrompt(list(ids), None, None)
    kinds: dict[int, type[Picture | Film]] = {config.image_token_id: Picture}
    if _VIDEO in tokenizer.special_tokens:
        kinds[tokenizer.special_tokens[_VIDEO]] = Film
    wanted = [kinds[index] for index in ids if index in kinds]
    if wanted != [type(medium) for medium in media]:
        places = ", ".join(kind.__name__.lower() for kind in wanted) or "none"
        raise MediaError(f"media do not fit the prompt's placeholders: wanted {places}; found {_name(media)}")
    coming, tokens = iter(media), list[int]()
    for index in ids:
        tokens += _filled(next(coming), config, tokenizer) if index in kinds else [index]
    return ExpandedPrompt(tokens, *_stacked([image for medium in media for _, image in _images(medium)]))


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


def _stacked(images: Sequence[Patches]) -> tuple[np.ndarray, np.ndarray] | tuple[None, None]:
    """All images with as many patches as the largest; a patch at (-1, -1) is padding."""
    if not images:
        return None, None
    most = max(len(image.patches_NP) for image in images)
    patches_INP = np.zeros((len(images), most, images[0].patches_NP.shape[1]), np.float32)
    positions_IN2 = np.full((len(images), most, 2), -1, np.int32)
    for index, image in enumerate(images):
        patches_INP[index, : len(image.patches_NP)] = image.patches_NP
        positions_IN2[index, : len(image.position_N2)] = image.position_N2
    return patches_INP, positions_IN2
