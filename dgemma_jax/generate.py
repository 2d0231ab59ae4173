"""One request, readable: prefill -> (denoise -> commit)* -> events.

What it does is what any faster way of answering must agree with.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from dgemma_jax import compiled
from dgemma_jax.config import GenerationConfig
from dgemma_jax.inputs import check_seeds
from dgemma_jax.sampling.settings import Settings

if TYPE_CHECKING:
    from dgemma_jax.pretrained import Model


@dataclasses.dataclass(frozen=True)
class Generated:
    """What `generate` returns.

    tokens: int32 [batch, n], n at most `max_new_tokens`. A row that ends early holds its end token, then padding.
    steps: int32 [batch, canvases], denoising steps of each canvas; 0 for canvases after a row's end.
    """

    tokens: np.ndarray
    steps: np.ndarray


@dataclasses.dataclass(frozen=True)
class CanvasCommitted:
    """New tokens of one canvas: up to and with the first end token, and never beyond `max_new_tokens`."""

    tokens: tuple[int, ...]
    steps: int


@dataclasses.dataclass(frozen=True)
class Finished:
    """The last event. "stop": an end token came; "length": no more tokens were allowed or fit."""

    reason: Literal["stop", "length"]


Event = CanvasCommitted | Finished


def stream(
    model: Model,
    tokens: Sequence[int],
    *,
    max_new_tokens: int,
    seed: int,
    generation: GenerationConfig,
    **images: ArrayLike,
) -> Iterator[Event]:
    """Answers one prompt, canvas by canvas. `images` as for `Model.prefill`.

    Raises:
        ValueError: at the first `next`, for a prompt that leaves no room for a canvas, or as `Model.prefill`.
    """
    settings = dataclasses.replace(generation, max_new_tokens=max_new_tokens)
    produced: list[int] = []
    for canvas_BL, steps_B in canvases(model, np.asarray([tokens]), check_seeds(seed, 1), settings, **images):
        new = cut(canvas_BL[0], max_new_tokens - len(produced), settings.eos_token_ids)
        produced += new
        yield CanvasCommitted(tuple(new), int(steps_B[0]))
    ended = bool(produced) and produced[-1] in settings.eos_token_ids
    yield Finished("stop" if ended else "length")


def generate(
    model: Model, tokens: ArrayLike, seed: int | ArrayLike, settings: GenerationConfig, **images: ArrayLike
) -> Generated:
    """Answers a batch of prompts of one length; see `Model.generate`."""
    tokens_BT = np.asarray(tokens)
    rows = len(tokens_BT) if tokens_BT.ndim == 2 else 0
    produced: list[list[int]] = [[] for _ in range(rows)]
    steps = []
    for canvas_BL, steps_B in canvases(model, tokens_BT, check_seeds(seed, rows), settings, **images):
        steps.append(steps_B)
        for row, canvas in zip(produced, canvas_BL, strict=True):
            if not (row and row[-1] in settings.eos_token_ids):
                row += cut(canvas, settings.max_new_tokens - len(row), settings.eos_token_ids)
    longest = max(map(len, produced))
    padded = [row + [settings.pad_token_id] * (longest - len(row)) for row in produced]
    return Generated(np.asarray(padded, np.int32), np.stack(steps, axis=1))


def canvases(
    model: Model, tokens_BT: np.ndarray, seed_B2: np.ndarray, settings: GenerationConfig, **images: ArrayLike
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Argmax canvases, int [B, L], and their steps, [B], until every row has ended or no canvas is left.

    A row that has ended takes no more steps; its canvases mean nothing.
    """
    limit = _canvas_limit(model, tokens_BT.shape[-1], settings.max_new_tokens)
    cache = model.prefill(tokens_BT, **images)
    row_settings = Settings.of(settings, len(tokens_BT))
    ended_B = np.zeros(len(tokens_BT), bool)
    for index in range(limit):
        active = dataclasses.replace(row_settings, max_steps_B=jnp.where(ended_B, 0, row_settings.max_steps_B))
        canvas_BL, steps_B = compiled.denoise_canvas(
            model.graphdef, model.params, cache, active, jnp.asarray(seed_B2), jnp.full(len(ended_B), index)
        )
        canvas_BL = np.asarray(canvas_BL)
        yield canvas_BL, np.asarray(steps_B)
        ended_B |= np.isin(canvas_BL, settings.eos_token_ids).any(axis=1)
        if ended_B.all():
            return
        if index + 1 < limit:
            cache = model.append(cache, canvas_BL)


def cut(canvas: np.ndarray, room: int, eos_token_ids: Sequence[int]) -> list[int]:
    """The canvas's tokens that count: at most `room`, and nothing after the first end token."""
    kept = canvas[:room].tolist()
    ends = [index for index, token in enumerate(kept) if token in eos_token_ids]
    return kept[: ends[0] + 1] if ends else kept


def _canvas_limit(model: Model, prompt: int, max_new_tokens: int) -> int:
    """How many canvases may be written. Raises ValueError where not even one fits behind the prompt."""
    length, positions = model.config.canvas_length, model.config.text.max_position_embeddings
    fitting = (positions - prompt) // length
    if fitting < 1:
        raise ValueError(
            f"a prompt of {prompt} tokens leaves no room for a canvas of {length} in the model's {positions} positions"
        )
    return min(-(-max_new_tokens // length), fitting)
