"""The engine over a loaded checkpoint: one request at a time, through `dgemma_jax.stream`."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Generator, Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import jax

import dgemma_jax
from dgemma_jax.buckets import SMALLEST_CAPACITY
from dgemma_jax.config_json import read_model_config
from dgemma_jax.media.error import MediaError
from dgemma_jax.media.image import read_image, soft_token_budgets, to_patches
from dgemma_jax.media.prompt import Film, Picture, expand
from dgemma_jax.media.video import iter_video
from dgemma_jax.prompt.messages import MessageError
from dgemma_jax.prompt.parse import Content, Reasoning, ResponseParser, ToolCall, opens_thought
from dgemma_jax.prompt.template import ChatTemplate, TemplateError
from dgemma_jax.prompt.template import PromptLengthError as TooLongError
from dgemma_jax.prompt.tokenizer import AUDIO_TOKENS, MEDIA_TOKENS, Tokenizer
from dgemma_jax.sharding import describe
from serve.checkpoint_text import CheckpointText
from serve.engine import (
    Call,
    Canvas,
    Detail,
    Event,
    Finished,
    Job,
    MediaKind,
    Medium,
    MediumError,
    Parser,
    Piece,
    PlainText,
    Prompt,
    PromptError,
    PromptLengthError,
    Sampling,
    TokenLogprob,
)

_VIDEO = "<|video|>"
_MODEL_TURN = "<|turn>model\n"
_MOST_PIXELS = 2**26  # 67 million: decoding takes up to 600 MB

COLDEST = 1e-3
"""What temperature 0 means: this fraction of the checkpoint's temperatures. Exact zero would divide by zero."""


class CheckpointEngine:
    """Implements `serve.engine.Engine`."""

    def __init__(self, model: dgemma_jax.Model, tokenizer: Tokenizer, template: ChatTemplate) -> None:
        self.max_model_len = model.config.text.max_position_embeddings
        self._model = model
        self._tokenizer = tokenizer
        self._template = template
        special = tokenizer.special_tokens
        held = (special[name] for name in (*MEDIA_TOKENS, *AUDIO_TOKENS) if name in special)
        self._media_ids = {model.config.image_token_id, *held}
        self.text: PlainText = CheckpointText(
            tokenizer,
            vocabulary=model.config.text.vocab_size,
            positions=self.max_model_len,
            unread=self._media_ids,
        )
        self._places: dict[int, MediaKind] = {}
        if model.config.vision is not None:
            self._places[model.config.image_token_id] = "image"
            if _VIDEO in special:
                self._places[special[_VIDEO]] = "video"
        self.media: frozenset[MediaKind] = frozenset(self._places.values())
        self.sampling = Sampling(
            max_steps=model.generation.max_denoising_steps,
            entropy_bound=model.generation.entropy_bound,
            confidence_threshold=model.generation.confidence_threshold,
            t_min=model.generation.t_min,
            t_max=model.generation.t_max,
        )

    @classmethod
    def load(cls, folder: Path, dtype: str, lora: Path | None = None, mesh: str | None = None) -> CheckpointEngine:
        """Loads model, tokenizer and chat template; `lora` is the folder of an adapter to add; `mesh` as for
        `dgemma_jax.load`.

        Raises:
            ValueError, OSError: the folder is not a checkpoint that can chat, or the adapter is not for it; the
                message says what is wrong.
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
        return cls(dgemma_jax.load(folder, dtype=dtype, lora=lora, mesh=mesh), tokenizer, template)

    @property
    def devices(self) -> str:
        """What the model runs on, for people."""
        return f"{describe(self._model.mesh)} ({jax.devices()[0].device_kind})"

    def render(
        self, messages: list[dict[str, Any]], *, thinking: bool, tools: list[dict[str, Any]] | None = None
    ) -> tuple[int, ...]:
        """As `Engine.render`. Markers that users wrote in a message are ordinary text."""
        try:
            prompt = tuple(
                self._template.encode(
                    self._tokenizer, messages, tools=tools, enable_thinking=thinking, most_tokens=self.max_model_len
                )
            )
        except TooLongError as error:
            raise PromptLengthError(error.least) from error
        except MessageError as error:
            raise PromptError(str(error), error.param) from error
        except TemplateError as error:
            raise PromptError(str(error)) from error
        except RecursionError as error:
            raise PromptError("arguments or schemas are nested too deeply") from error
        places = [self._places.get(index) for index in prompt if index in self._media_ids]
        if places != _media_kinds(messages):
            raise PromptError(
                "it would place an image, a video or sound in the prompt where none was sent, or leave one out"
            )
        return prompt if self._may_answer(prompt) else (*prompt, *self._tokenizer.encode(_MODEL_TURN))

    def _may_answer(self, prompt: Sequence[int]) -> bool:
        """Whether the model's turn is open at the end of a prompt.

        Published templates close it and open no other one where the last assistant message has content beside calls
        that were answered.
        """
        turns = [self._tokenizer.token_id(name) for name in ("<|turn>", "<turn|>")]
        return next((token == turns[0] for token in reversed(prompt) if token in turns), True)

    def read(self, data: bytes, kind: MediaKind, detail: Detail) -> Medium:
        """As `Engine.read`."""
        processor = self._model.processor
        assert processor is not None, "without a vision tower there are no media to read"
        try:
            if kind == "video":
                budget = processor.video_max_soft_tokens
                frames = iter_video(data, processor)
                return Film([(frame.seconds, to_patches(frame.image, processor, budget)) for frame in frames])
            budgets = soft_token_budgets(processor)
            wanted = {"low": budgets[0], "high": budgets[-1]}.get(detail)
            return Picture(to_patches(read_image(data, _MOST_PIXELS), processor, wanted))
        except MediaError as error:
            raise MediumError(str(error)) from error

    def expand(self, prompt: Sequence[int], media: Sequence[Medium]) -> Prompt:
        """As `Engine.expand`."""
        made = expand(prompt, cast("Sequence[Picture | Film]", media), self._model.config, self._tokenizer)
        return Prompt(tokens=tuple(made.tokens), patches=made.patches, patch_positions=made.patch_positions)

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
        generation = tempered(sampled(self._model.generation, job.sampling), job.temperature)
        for event in dgemma_jax.stream(
            self._model,
            job.prompt,
            max_new_tokens=job.max_new_tokens,
            seed=job.seed,
            generation=generation,
            options=dgemma_jax.SamplingOptions(top_k=job.top_k, top_p=job.top_p, logprobs=job.logprobs),
            patches=job.patches,
            patch_positions=job.patch_positions,
        ):
            match event:
                case dgemma_jax.CanvasCommitted(tokens, steps, logprobs):
                    scored = tuple(TokenLogprob(token.logprob, token.likeliest) for token in logprobs or ())
                    yield Canvas(tokens, steps, scored if logprobs is not None else None)
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


def sampled(generation: dgemma_jax.GenerationConfig, sampling: Sampling | None) -> dgemma_jax.GenerationConfig:
    """The sampler's settings with a request's own in place of the checkpoint's."""
    if sampling is None:
        return generation
    fields = dataclasses.asdict(sampling)
    return dataclasses.replace(generation, max_denoising_steps=fields.pop("max_steps"), **fields)


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

    def push(self, tokens: Sequence[int]) -> list[Piece | Call]:
        return _pieces(self._parser.push(tokens))

    def finish(self) -> list[Piece | Call]:
        return _pieces(self._parser.finish())


def _pieces(deltas: Iterable[Reasoning | Content | ToolCall]) -> list[Piece | Call]:
    pieces: list[Piece | Call] = []
    for delta in deltas:
        match delta:
            case Reasoning(text):
                pieces.append(Piece("reasoning", text))
            case Content(text):
                pieces.append(Piece("content", text))
            case ToolCall():
                pieces.append(Call(delta.name, delta.arguments))
    return pieces


def _media_kinds(messages: Iterable[dict[str, Any]]) -> list[MediaKind | None]:
    """The media of a conversation, in order."""
    contents = [message["content"] for message in messages if isinstance(message["content"], list)]
    kinds: dict[str, MediaKind] = {"image": "image", "video": "video"}
    return [kinds[part["type"]] for content in contents for part in content if part["type"] != "text"]
