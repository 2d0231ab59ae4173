"""One request, readable: prefill -> (denoise -> commit)* -> events.

What it does is what any faster way of answering must agree with.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from dgemma_jax import compiled
from dgemma_jax.config import GenerationConfig
from dgemma_jax.inputs import check_seeds
from dgemma_jax.sampling.logprobs import TokenLogprob, of_row
from dgemma_jax.sampling.options import PLAIN, SamplingOptions
from dgemma_jax.sampling.settings import Settings

if TYPE_CHECKING:
    from dgemma_jax.pretrained import Model


@dataclasses.dataclass(frozen=True)
class Generated:
    """What `generate` returns.

    tokens: int32 [batch, n], n at most `max_new_tokens`. A row that ends early holds its end token, then padding.
    steps: int32 [batch, canvases], denoising steps of each canvas; 0 for canvases after a row's end.
    logprobs: of each row, one for each of its tokens before the padding; None unless the options ask for them.
    """

    tokens: np.ndarray
    steps: np.ndarray
    logprobs: tuple[tuple[TokenLogprob, ...], ...] | None = None


@dataclasses.dataclass(frozen=True)
class CanvasCommitted:
    """New tokens of one canvas: up to and with the first end token, and never beyond `max_new_tokens`.

    logprobs: one for each token: of the last prediction the canvas had, whose argmax it is, at temperature 1 (not the
    schedule's), given the prompt and the canvas as it then was. None unless the options ask for them.
    """

    tokens: tuple[int, ...]
    steps: int
    logprobs: tuple[TokenLogprob, ...] | None = None


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
    options: SamplingOptions = PLAIN,
    **images: Any,
) -> Iterator[Event]:
    """Answers one prompt, canvas by canvas. `images` as for `Model.prefill`.

    One canvas ahead of what was yielded is already on its way on the device; who leaves early lets it end there.

    The first request with a truncation (`top_k` or `top_p`), and the first with log-probabilities, compiles a program
    of its own; their values compile nothing. Log-probabilities are read off after the last step.

    Raises:
        ValueError: at the first `next`, for a prompt that leaves no room for a canvas, or as `Model.prefill`.
    """
    settings = dataclasses.replace(generation, max_new_tokens=max_new_tokens)
    produced: list[int] = []
    for canvas in canvases(model, np.asarray([tokens]), check_seeds(seed, 1), settings, options, **images):
        event = _committed(canvas, 0, max_new_tokens - len(produced), settings, options)
        produced += event.tokens
        yield event
    ended = bool(produced) and produced[-1] in settings.eos_token_ids
    yield Finished("stop" if ended else "length")


def generate(
    model: Model,
    tokens: ArrayLike,
    seed: int | ArrayLike,
    settings: GenerationConfig,
    options: SamplingOptions = PLAIN,
    **images: Any,
) -> Generated:
    """Answers a batch of prompts of one length; see `Model.generate`."""
    tokens_BT = np.asarray(tokens)
    rows = len(tokens_BT) if tokens_BT.ndim == 2 else 0
    produced: list[list[int]] = [[] for _ in range(rows)]
    scores: list[list[TokenLogprob]] = [[] for _ in range(rows)]
    steps = []
    for canvas in canvases(model, tokens_BT, check_seeds(seed, rows), settings, options, **images):
        steps.append(np.asarray(canvas.step_B))
        for row, made in enumerate(produced):
            if not (made and made[-1] in settings.eos_token_ids):
                event = _committed(canvas, row, settings.max_new_tokens - len(made), settings, options)
                made += event.tokens
                scores[row] += event.logprobs or ()
    longest = max(map(len, produced))
    padded = [made + [settings.pad_token_id] * (longest - len(made)) for made in produced]
    logprobs = None if options.logprobs is None else tuple(map(tuple, scores))
    return Generated(np.asarray(padded, np.int32), np.stack(steps, axis=1), logprobs)


def _committed(
    canvas: compiled.Denoised, row: int, room: int, settings: GenerationConfig, options: SamplingOptions
) -> CanvasCommitted:
    tokens = cut(np.asarray(canvas.canvas_BL)[row], room, settings.eos_token_ids)
    logprobs = None
    if canvas.logprobs is not None and options.logprobs is not None:
        logprobs = of_row(canvas.logprobs, row, len(tokens), options.logprobs)
    return CanvasCommitted(tuple(tokens), int(np.asarray(canvas.step_B)[row]), logprobs)


def canvases(
    model: Model,
    tokens_BT: np.ndarray,
    seed_B2: np.ndarray,
    settings: GenerationConfig,
    options: SamplingOptions,
    **images: Any,
) -> Iterator[compiled.Denoised]:
    """Canvases of all rows, until every row has ended or no canvas is left.

    A row that has ended takes no more steps; its canvases mean nothing. The device is given the next canvas before the
    present one is looked at, so that it never waits for Python; where all rows have ended, it finds nothing to do.
    """
    limit = _canvas_limit(model, tokens_BT.shape[-1], settings.max_new_tokens)
    cache = model.prefill(tokens_BT, **images)
    row_settings = Settings.of(settings, len(tokens_BT), options)
    seeds_B2, ends_N = jnp.asarray(seed_B2), jnp.asarray(settings.eos_token_ids, jnp.int32)

    def denoise(index: int, ended_B: jax.Array) -> compiled.Denoised:
        active = dataclasses.replace(row_settings, max_steps_B=jnp.where(ended_B, 0, row_settings.max_steps_B))
        place_B = jnp.full(len(tokens_BT), index)
        return compiled.denoise_canvas(*model.flat, cache, active, seeds_B2, place_B)

    following = denoise(0, jnp.zeros(len(tokens_BT), bool))
    ended_B = compiled.ended(following.canvas_BL, None, ends_N)
    for index in range(limit):
        canvas, over_B = following, ended_B
        if index + 1 < limit:
            length = tokens_BT.shape[1] + (index + 1) * model.config.canvas_length
            cache = model.append(cache, canvas.canvas_BL, length, over_B)
            following = denoise(index + 1, over_B)
            ended_B = compiled.ended(following.canvas_BL, over_B, ends_N)
        yield canvas
        if np.asarray(over_B).all():
            return


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
