"""What goes into the engine and what comes out: immutable values that may cross threads."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from dgemma_jax.config import GenerationConfig
from dgemma_jax.generate import CanvasCommitted, Finished
from dgemma_jax.grammar import Grammar
from dgemma_jax.media.patches import Patches
from dgemma_jax.sampling.options import PLAIN, SamplingOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """One answer that is wanted.

    tokens, patches, patch_positions: one prompt, as a row of `Model.prefill` and its images.
    generation: None as the checkpoint says. Of it, `max_new_tokens` is not read: the field here counts.
    grammar: what the answer must be; None: whatever the model says. See `grammar.py`. The tokens that end an answer
        must be those of its vocabulary.
    draft_every: a `Draft` after every so many denoising steps; 0 is never.
    timeout: seconds after which the request fails, waiting included; None is never.
    """

    tokens: tuple[int, ...]
    max_new_tokens: int = 256
    seed: int = 0
    generation: GenerationConfig | None = None
    options: SamplingOptions = PLAIN
    patches: np.ndarray | Sequence[Patches] | None = dataclasses.field(default=None, compare=False, repr=False)
    patch_positions: np.ndarray | None = dataclasses.field(default=None, compare=False, repr=False)
    grammar: Grammar | None = dataclasses.field(default=None, compare=False)
    draft_every: int = 0
    timeout: float | None = None


@dataclasses.dataclass(frozen=True)
class Prefilled:
    """The prompt is read. Of its tokens so many were not computed but taken from an earlier prompt."""

    prompt_tokens: int
    cached_tokens: int


@dataclasses.dataclass(frozen=True)
class Draft:
    """The canvas under way, whole, as it is predicted after so many steps. The next draft may differ anywhere."""

    tokens: tuple[int, ...]
    step: int


@dataclasses.dataclass(frozen=True)
class Failed:
    """The last event of a request that could not be answered."""

    error: Exception


Event = Prefilled | Draft | CanvasCommitted | Finished | Failed


class RefusedError(ValueError):
    """A request that can never fit this engine; the text has the numbers."""


class QueueFullError(RuntimeError):
    """Too many requests wait already."""


class EngineDeadError(RuntimeError):
    """The engine crashed or was closed: it answers nothing any more. `__cause__` is why."""
