"""Answers to many prompts, several at a time: prompts of one length share a batch."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from dgemma_jax.config import ModelConfig
from dgemma_jax.pretrained import Model
from dgemma_jax.training.rows import Row

ROWS = 8
MAX_NEW_TOKENS = 256


@dataclasses.dataclass(frozen=True)
class Answered:
    """Generated tokens up to and with the end token, and the denoising steps of each canvas."""

    tokens: list[int]
    steps: list[int]


def answer_all(model: Model, rows: Sequence[Row], max_new_tokens: int = MAX_NEW_TOKENS) -> list[Answered]:
    """Answers every row's prompt; the seed of each is its number. A row's answer does not depend on its batch.

    An answer ends at the model's last position, if that comes before `max_new_tokens`.
    """
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        groups[len(row.prompt), row.images].append(index)
    answers: dict[int, Answered] = {}
    for indices in groups.values():
        for start in range(0, len(indices), ROWS):
            chosen = indices[start : start + ROWS]
            # Always a full batch, so that one compiled program serves all; the last row is repeated.
            filled = chosen + [chosen[-1]] * (ROWS - len(chosen))
            answers |= zip(chosen, _answer(model, [rows[i] for i in filled], filled, max_new_tokens), strict=False)
    return [answers[index] for index in range(len(rows))]


def _answer(model: Model, rows: Sequence[Row], seeds: Sequence[int], most: int) -> list[Answered]:
    images: dict[str, Any] = {}
    if rows[0].images:
        padded = [padded_images(row, model.config) for row in rows]
        images = {
            "patches": np.concatenate([patches for patches, _ in padded]),
            "patch_positions": np.concatenate([positions for _, positions in padded]),
        }
    prompts = np.asarray([row.prompt for row in rows])
    canvas, positions = model.config.canvas_length, model.config.text.max_position_embeddings
    room = (positions - prompts.shape[1]) // canvas * canvas
    result = model.generate(prompts, max_new_tokens=min(most, room), seed=np.asarray(seeds), **images)
    ends = model.generation.eos_token_ids
    return [
        Answered(_up_to_end(tokens, ends), [step for step in steps if step > 0])
        for tokens, steps in zip(result.tokens.tolist(), result.steps.tolist(), strict=True)
    ]


def _up_to_end(tokens: list[int], ends: Sequence[int]) -> list[int]:
    found = [index for index, token in enumerate(tokens) if token in ends]
    return tokens[: found[0] + 1] if found else tokens


def padded_images(row: Row, config: ModelConfig) -> tuple[np.ndarray, np.ndarray]:
    """A row's images with as many patches as the largest that the model takes, so that images of any shape batch."""
    assert row.patches_INP is not None and row.position_IN2 is not None and config.vision is not None
    count = max(config.soft_tokens_per_image * config.vision.patches_per_soft_token, row.patches_INP.shape[1])
    missing = ((0, 0), (0, count - row.patches_INP.shape[1]), (0, 0))
    return np.pad(row.patches_INP, missing), np.pad(row.position_IN2, missing, constant_values=-1)
