"""A request, checked and laid out: what the engine will do for it. No device work."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from dgemma_jax.buckets import chunks, short_prompt
from dgemma_jax.config import GenerationConfig, ModelConfig
from dgemma_jax.engine.events import RefusedError, Request
from dgemma_jax.inputs import check_images, check_seeds, check_tokens
from dgemma_jax.media.patches import Patches


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """keys_T: the prompt's tokens, those of images replaced by what the images are: equal keys, equal caches.
    ends: where the passes over the prompt end. canvases: of `canvas_length` tokens, at most.
    longest: tokens in the cache at the very end.
    short: whether it may be read in one pass with others."""

    request: Request
    generation: GenerationConfig
    tokens_1T: np.ndarray
    is_soft_1T: np.ndarray
    images: tuple[Patches, ...] | None
    keys_T: np.ndarray
    ends: tuple[int, ...]
    seed_12: np.ndarray
    canvas_length: int
    canvases: int
    longest: int
    short: bool

    @property
    def length(self) -> int:
        """Tokens of the prompt."""
        return self.tokens_1T.shape[1]


def plan(request: Request, config: ModelConfig, default: GenerationConfig, positions: int, chunk: int) -> Plan:
    """Checks a request and cuts its prompt into passes of at most `chunk` tokens, as `Model.prefill` would.

    Raises:
        ValueError: as `Model.prefill` and `dgemma_jax.stream`; RefusedError where no canvas fits the positions.
    """
    tokens_1T = check_tokens("tokens", np.asarray([request.tokens]), config.text.vocab_size)
    images = check_images(config, tokens_1T, request.patches, request.patch_positions)
    generation = _generation(request, default)
    length, canvas = tokens_1T.shape[1], config.canvas_length
    fitting = (positions - length) // canvas
    if fitting < 1:
        raise RefusedError(
            f"a prompt of {length} tokens leaves no room for a canvas of {canvas} "
            f"in the {positions} positions of this engine"
        )
    canvases = min(-(-request.max_new_tokens // canvas), fitting)
    is_soft_1T = np.zeros_like(tokens_1T, bool) if images is None else tokens_1T == config.image_token_id
    spans = chunks(length, chunk, None if images is None else is_soft_1T)
    return Plan(
        request=request,
        generation=generation,
        tokens_1T=tokens_1T,
        is_soft_1T=is_soft_1T,
        images=images,
        keys_T=_keys(tokens_1T[0], is_soft_1T[0], images),
        ends=tuple(end for _, end in spans),
        seed_12=check_seeds(request.seed, 1),
        canvas_length=canvas,
        canvases=canvases,
        longest=length + canvases * canvas,
        short=images is None and len(spans) == 1 and length <= short_prompt(canvas),
    )


def _generation(request: Request, default: GenerationConfig) -> GenerationConfig:
    generation = dataclasses.replace(request.generation or default, max_new_tokens=request.max_new_tokens)
    if generation.stability_threshold != default.stability_threshold:
        raise ValueError(
            f"stability_threshold must be the checkpoint's {default.stability_threshold} for all requests of an "
            f"engine, found {generation.stability_threshold}"
        )
    if request.draft_every < 0:
        raise ValueError(f"draft_every must not be negative (0 is never), found {request.draft_every}")
    return generation


def _keys(tokens_T: np.ndarray, is_soft_T: np.ndarray, images: Sequence[Patches] | None) -> np.ndarray:
    """Negative numbers stand for images: eight words of a digest again and again, so that a few tokens identify it."""
    keys_T = tokens_T.astype(np.int64)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], is_soft_T, [False]]).astype(np.int8)))
    for image, start, end in zip(images or (), edges[::2], edges[1::2], strict=True):
        words = np.frombuffer(image.digest, np.int64)
        keys_T[start:end] = np.resize(-(words >> 1 & (2**62 - 1)) - 1, end - start)
    return keys_T
