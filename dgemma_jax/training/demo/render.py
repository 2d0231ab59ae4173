"""Drawn conversations as training rows: text through the chat template, pictures and clips as patches."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

from dgemma_jax.config import ModelConfig
from dgemma_jax.media.image import to_patches
from dgemma_jax.media.prompt import Film, Picture
from dgemma_jax.prompt.template import ChatTemplate
from dgemma_jax.prompt.tokenizer import Tokenizer
from dgemma_jax.training.conversation import to_row
from dgemma_jax.training.demo.architecture import DEMO_PROCESSOR, demo_config
from dgemma_jax.training.demo.example import Clip, Example, Medium, Message
from dgemma_jax.training.demo.mix import example
from dgemma_jax.training.rows import Row


@dataclasses.dataclass(frozen=True)
class TrainingRows:
    """The endless training rows of a seed, by number; `folder` holds tokenizer and chat template."""

    folder: Path
    seed: int

    def __call__(self, index: int) -> Row:
        return demo_row(example("train", self.seed, index), *_format(self.folder))


@functools.lru_cache(maxsize=1)
def _format(folder: Path) -> tuple[Tokenizer, ChatTemplate, ModelConfig]:
    tokenizer = Tokenizer.from_folder(folder)
    return tokenizer, ChatTemplate.from_folder(folder), demo_config(tokenizer)


def demo_row(drawn: Example, tokenizer: Tokenizer, template: ChatTemplate, config: ModelConfig) -> Row:
    """A drawn conversation as a training row; the mistake of one without is its right answer."""
    media = [demo_medium(medium) for medium in drawn.media]

    def row(messages: list[Message]) -> Row:
        return to_row(messages, tokenizer, template, config, tools=drawn.tools, media=media, thinking=drawn.thinking)

    right = row(drawn.messages)
    wrong = right if drawn.mistake is None else row([*drawn.prompt, drawn.mistake])
    return dataclasses.replace(right, mistake=wrong.answer)


def demo_medium(drawn: Medium) -> Picture | Film:
    """A picture or clip as the patches that the vision tower reads."""
    if not isinstance(drawn, Clip):
        return Picture(to_patches(drawn, DEMO_PROCESSOR))
    budget = DEMO_PROCESSOR.video_max_soft_tokens
    frames = [to_patches(frame, DEMO_PROCESSOR, budget) for frame in drawn.frames]
    return Film([(index * drawn.seconds_per_frame, patches) for index, patches in enumerate(frames)])
