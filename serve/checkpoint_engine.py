"""The engine over a loaded checkpoint: `dgemma_jax.Engine`, with tokenizer, chat template and media around it."""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import jax

import dgemma_jax
from dgemma_jax.checkpoint.quantize import Kind
from dgemma_jax.config_json import read_model_config
from dgemma_jax.grammar import Vocabulary
from dgemma_jax.media.error import MediaError
from dgemma_jax.media.prompt import Film, Picture, expand
from dgemma_jax.prompt.messages import MessageError
from dgemma_jax.prompt.parse import Content, Reasoning, ResponseParser, ToolCall, opens_thought
from dgemma_jax.prompt.template import ChatTemplate, TemplateError
from dgemma_jax.prompt.template import PromptLengthError as TooLongError
from dgemma_jax.prompt.tokenizer import AUDIO_TOKENS, MEDIA_TOKENS, Tokenizer
from dgemma_jax.sharding import describe
from serve.checkpoint_jobs import event_of, lark_of, request_of
from serve.checkpoint_media import CheckpointMedia
from serve.checkpoint_text import CheckpointText
from serve.dtype import choose_dtype
from serve.engine import (
    AnswerFormat,
    Call,
    Detail,
    Event,
    FormatError,
    Grammar,
    Job,
    MediaKind,
    Medium,
    Parser,
    Piece,
    PlainText,
    Prompt,
    PromptError,
    PromptLengthError,
    Sampling,
)

WarmUp = Literal["all", "chat"]
"""What is compiled ahead: everything, or not what only requests with images, `top_k` or `top_p` need."""

_GRAMMARS = 64
"""Answer formats that are kept ready: an agent asks for the same ones again and again."""
_VIDEO = "<|video|>"
_MODEL_TURN = "<|turn>model\n"


class CheckpointEngine:
    """Implements `serve.engine.Engine`."""

    def __init__(
        self,
        model: dgemma_jax.Model,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        engine: dgemma_jax.Engine,
        warm_up: WarmUp = "all",
    ) -> None:
        self.max_model_len = engine.positions
        self.slots = engine.slots
        self.dtype = model.dtype.name
        self._model = model
        self._engine = engine
        self._warm_up = warm_up
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
        vocabulary = Vocabulary(tokenizer, model.config.text.vocab_size, model.generation.eos_token_ids)
        self._grammars = functools.lru_cache(maxsize=_GRAMMARS)(vocabulary.grammar)
        self.sampling = Sampling(
            max_steps=model.generation.max_denoising_steps,
            entropy_bound=model.generation.entropy_bound,
            confidence_threshold=model.generation.confidence_threshold,
            t_min=model.generation.t_min,
            t_max=model.generation.t_max,
        )

    @classmethod
    def load(
        cls,
        folder: Path,
        dtype: str,
        lora: Path | None = None,
        *,
        mesh: str | None = None,
        backend: str | None = None,
        quantize: Kind | None = None,
        warm_up: WarmUp = "all",
        **limits: Any,
    ) -> CheckpointEngine:
        """Loads model, tokenizer and chat template; `lora` is the folder of an adapter to add.

        `dtype` may be "auto"; it, `mesh`, `backend` and `quantize` are as for `dgemma_jax.load`, `limits` as for
        `dgemma_jax.Engine`. `warm_up`: what is compiled ahead, "chat" without images and truncations.

        Raises:
            ValueError, OSError: the folder is not a checkpoint that can chat, the adapter is not for it, or the memory
                holds no request; the message says what is wrong.
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
        dtype = choose_dtype(dtype, folder)
        model = dgemma_jax.load(folder, dtype=dtype, lora=lora, mesh=mesh, backend=backend, quantize=quantize)
        return cls(model, tokenizer, template, dgemma_jax.Engine(model, **limits), warm_up)

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

    def medium_bytes(self, kind: MediaKind, detail: Detail) -> int:
        """As `Engine.medium_bytes`."""
        return self._media_files.most_bytes(kind, detail)

    def read(self, data: bytes, kind: MediaKind, detail: Detail) -> Medium:
        """As `Engine.read`."""
        return self._media_files.read(data, kind, detail)

    @functools.cached_property
    def _media_files(self) -> CheckpointMedia:
        assert self._model.processor is not None, "without a vision tower there are no media to read"
        return CheckpointMedia(self._model.processor)

    def expand(self, prompt: Sequence[int], media: Sequence[Medium]) -> Prompt:
        """As `Engine.expand`."""
        try:
            made = expand(prompt, cast("Sequence[Picture | Film]", media), self._model.config, self._tokenizer)
        except MediaError as error:
            raise PromptError(str(error), "messages") from error
        return Prompt(tokens=tuple(made.tokens), images=made.images or None)

    def grammar(self, format: AnswerFormat, prompt: Sequence[int], *, thinking: bool) -> Grammar:
        """As `Engine.grammar`."""
        opened = opens_thought(self._tokenizer, prompt)
        try:
            return self._grammars(lark_of(format, "is_open" if opened else "may_open" if thinking else "none"))
        except ValueError as error:
            raise FormatError(str(error)) from error
        except RecursionError as error:
            raise FormatError("the schema is nested too deeply") from error

    def room(self, prompt_tokens: int) -> int:
        """As `Engine.room`. Only whole canvases are written, so the room is a multiple of the canvas length."""
        length = self._model.config.canvas_length
        return (self.max_model_len - prompt_tokens) // length * length

    def parser(self, prompt: Sequence[int]) -> Parser:
        """As `Engine.parser`."""
        return _Parser(ResponseParser(self._tokenizer, starts_in_thought=opens_thought(self._tokenizer, prompt)))

    def warm_up(self, progress: Callable[[str], None]) -> None:
        """As `Engine.warm_up`."""
        self._engine.warm_up(progress, everything=self._warm_up == "all")

    def close(self) -> None:
        """As `Engine.close`."""
        self._engine.close()

    def submit(self, job: Job) -> int:
        """As `Engine.submit`."""
        return self._engine.submit(request_of(job, self._model.generation))

    def cancel(self, id: int) -> None:
        """As `Engine.cancel`."""
        self._engine.cancel(id)

    @property
    def running(self) -> int:
        """As `Engine.running`."""
        return self._engine.running

    @property
    def memory_share(self) -> float:
        """As `Engine.memory_share`."""
        return self._engine.memory_share

    @property
    def busy(self) -> bool:
        """As `Engine.busy`."""
        return self._engine.busy

    def step(self) -> list[tuple[int, Event]]:
        """As `Engine.step`."""
        events = self._engine.step()
        if self._engine.error is not None:
            raise self._engine.error
        return [(id, event_of(event)) for id, event in events]


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
