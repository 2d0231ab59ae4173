"""The engine over a loaded checkpoint: one request at a time, through `dgemma_jax.stream`."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Generator, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax

import dgemma_jax
from dgemma_jax.buckets import SMALLEST_CAPACITY
from dgemma_jax.config_json import read_model_config
from dgemma_jax.prompt.messages import MessageError
from dgemma_jax.prompt.parse import Content, Reasoning, ResponseParser, ToolCall, opens_thought
from dgemma_jax.prompt.template import ChatTemplate, TemplateError
from dgemma_jax.prompt.template import PromptLengthError as TooLongError
from dgemma_jax.prompt.tokenizer import AUDIO_TOKENS, MEDIA_TOKENS, Tokenizer
from serve.engine import Canvas, Event, Finished, Job, Parser, Piece, PromptError, PromptLengthError

COLDEST = 1e-3
"""What temperature 0 means: this fraction of the checkpoint's temperatures. Exact zero would divide by zero."""


class CheckpointEngine:
    """Implements `serve.engine.Engine`."""

    def __init__(self, model: dgemma_jax.Model, tokenizer: Tokenizer, template: ChatTemplate) -> None:
        self.max_model_len = model.config.text.max_position_embeddings
        self._model = model
        self._tokenizer = tokenizer
        self._template = template
        held = (tokenizer.special_tokens.get(name) for name in (*MEDIA_TOKENS, *AUDIO_TOKENS))
        self._media_ids = {model.config.image_token_id, *held} - {None}

    @classmethod
    def load(cls, folder: Path, dtype: str) -> CheckpointEngine:
        """Loads model, tokenizer and chat template.

        Raises:
            ValueError, OSError: the folder is not a checkpoint that can chat; the message says what is wrong.
            RuntimeError: JAX has no device, or no room on it.
        """
        _require_device()
        # What is cheap to find wrong comes before the weights; `dgemma_jax.load` reads config and tokenizer again.
        config = read_model_config(folder)
        positions, canvas = config.text.max_position_embeddings, config.canvas_length
        if canvas >= positions:
            raise ValueError(f"{folder}: a canvas of {canvas} tokens and a prompt do not fit the {positions} positions")
        template = ChatTemplate.from_folder(folder)
        tokenizer = Tokenizer.from_folder(folder)
        tokenizer.require()
        return cls(dgemma_jax.load(folder, dtype=dtype), tokenizer, template)

    @property
    def devices(self) -> str:
        """What the model runs on, for people."""
        devices = jax.devices()
        return f"{len(devices)} x {devices[0].device_kind}"

    def render(self, messages: list[dict[str, Any]], *, thinking: bool) -> tuple[int, ...]:
        """As `Engine.render`. Markers that users wrote in a message are ordinary text."""
        try:
            prompt = tuple(
                self._template.encode(
                    self._tokenizer, messages, enable_thinking=thinking, most_tokens=self.max_model_len
                )
            )
        except TooLongError as error:
            raise PromptLengthError(error.least) from error
        except (TemplateError, MessageError) as error:
            raise PromptError(str(error)) from error
        if not self._media_ids.isdisjoint(prompt):
            raise PromptError("it would place an image, a video or sound in the prompt, but none was sent")
        return prompt

    def room(self, prompt_tokens: int) -> int:
        """As `Engine.room`. Only whole canvases are written, so the room is a multiple of the canvas length."""
        length = self._model.config.canvas_length
        return (self.max_model_len - prompt_tokens) // length * length

    def parser(self, prompt: Sequence[int]) -> Parser:
        """As `Engine.parser`."""
        return _Parser(ResponseParser(self._tokenizer, starts_in_thought=opens_thought(self._tokenizer, prompt)))

    def warm_up(self) -> None:
        """Compiles what short conversations need: prompts up to half the smallest cache, denoising, commit.

        Larger caches and longer prompts are compiled when the first request needs them, and kept on disk.
        """
        quick = dataclasses.replace(self._model.generation, max_denoising_steps=1, eos_token_ids=())
        length = self._model.config.canvas_length
        for prompt in (1, length + 1, SMALLEST_CAPACITY // 2):
            if (room := self.room(prompt)) > 0:  # one canvas where only one fits; the second is a commit first
                for _ in dgemma_jax.stream(
                    self._model, [0] * prompt, max_new_tokens=min(length + 1, room), seed=0, generation=quick
                ):
                    pass

    def generate(self, job: Job) -> Generator[Event, None, None]:
        """As `Engine.generate`."""
        generation = tempered(self._model.generation, job.temperature)
        for event in dgemma_jax.stream(
            self._model, job.prompt, max_new_tokens=job.max_new_tokens, seed=job.seed, generation=generation
        ):
            match event:
                case dgemma_jax.CanvasCommitted(tokens, steps):
                    yield Canvas(tokens, steps)
                case dgemma_jax.Finished(reason):
                    yield Finished(reason)


def _require_device() -> None:
    try:
        jax.devices()
    except AssertionError:  # what JAX raises for a platform whose package is not installed
        raise RuntimeError(
            f"JAX has no device of JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')}: is its package installed?"
        ) from None


def keep_compiled(folder: Path) -> None:
    """Makes JAX keep every compiled program in `folder`. Raises OSError when nothing can be written there."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def tempered(generation: dgemma_jax.GenerationConfig, temperature: float) -> dgemma_jax.GenerationConfig:
    """The sampler's settings at a request's `temperature`, which scales both ends of the temperature schedule.

    1 is as the checkpoint says. Towards 0 the canvas is explored more and more greedily; 0 itself is `COLDEST`, where
    tokens are drawn from what is practically the argmax. Every canvas starts from random tokens at any temperature,
    so only the seed makes a reply repeatable.
    """
    scale = max(temperature, COLDEST)
    return dataclasses.replace(generation, t_min=generation.t_min * scale, t_max=generation.t_max * scale)


class _Parser:
    """The library's parser in the server's terms."""

    def __init__(self, parser: ResponseParser) -> None:
        self._parser = parser

    @property
    def tokens(self) -> int:
        return self._parser.tokens

    @property
    def reasoning_tokens(self) -> int:
        return self._parser.reasoning_tokens

    @property
    def ended(self) -> bool:
        return self._parser.ended

    def push(self, tokens: Sequence[int]) -> list[Piece]:
        return _pieces(self._parser.push(tokens))

    def finish(self) -> list[Piece]:
        return _pieces(self._parser.finish())


def _pieces(deltas: Iterable[Reasoning | Content | ToolCall]) -> list[Piece]:
    pieces = []
    for delta in deltas:
        match delta:
            case Reasoning(text):
                pieces.append(Piece("reasoning", text))
            case Content(text):
                pieces.append(Piece("content", text))
            case ToolCall():  # no tools are offered yet, so what looks like a call is what the model had to say
                pieces.append(Piece("content", f"{delta.name}({delta.arguments})"))
    return pieces
