"""Messages to prompt text, by the checkpoint's own chat template.

The template is code that came with the weights, so it runs in jinja2's immutable sandbox, with the helpers it would
find in transformers. It writes every marker itself, `<bos>` included (some templates write `bos_token`, which they find
among their variables): nothing is added to what it renders.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from dgemma_jax.prompt.messages import guard_messages, guard_tools, normalise_messages, normalise_tools
from dgemma_jax.prompt.tokenizer import Tokenizer

# Templates may write `bos_token` and its like; a tokenizer_config.json may name them otherwise.
_NAMED_TOKENS = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}


class TemplateError(ValueError):
    """A chat template that is absent, does not compile, or refuses the messages."""


class PromptLengthError(ValueError):
    """A prompt that cannot have as few tokens as allowed; `least` is how many it has at least."""

    def __init__(self, least: int, most: int) -> None:
        super().__init__(f"the prompt is at least {least} tokens, allowed are {most}")
        self.least = least


class ChatTemplate:
    """A compiled chat template. Rendering keeps no state: it is safe from several threads."""

    def __init__(self, source: str, named_tokens: Mapping[str, str] | None = None) -> None:
        """Compile jinja `source`. Raises `TemplateError` when it is no template.

        `named_tokens` are variables such as `bos_token`; the model family's own names are there already.
        """
        self.source = source
        self._named_tokens = {**_NAMED_TOKENS, **(named_tokens or {})}
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateError as error:
            raise TemplateError(f"the chat template does not compile: {error}") from error

    @classmethod
    def from_folder(cls, path: Path) -> ChatTemplate:
        """Read `chat_template.jinja`, or else `chat_template` in `tokenizer_config.json`, from a checkpoint folder.

        Raises `TemplateError` when the folder holds neither, or when the template cannot be read.
        """
        path = Path(path)
        file, config = path / "chat_template.jinja", path / "tokenizer_config.json"
        try:
            settings = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
            source = file.read_text(encoding="utf-8") if file.is_file() else _default_template(settings)
        except (OSError, ValueError) as error:
            raise TemplateError(f"cannot read the chat template in {path}: {error}") from error
        if source is None:
            raise TemplateError(
                f"no chat template in {path}: wanted {file.name}, or the key chat_template in {config.name}"
            )
        return cls(source, _tokens_named_in(settings))

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        enable_thinking: bool = False,
        **kwargs: Any,
    ) -> str:
        """The prompt of a conversation, as text: for people to read, and for training data.

        Messages and tools are OpenAI's and are normalised here; `kwargs` reach the template. Markers that users wrote
        look like real ones in the text, so a server takes `encode` instead. Raises `MessageError`, `TemplateError`.
        """
        return self._run(
            normalise_messages(messages),
            normalise_tools(tools),
            {"add_generation_prompt": add_generation_prompt, "enable_thinking": enable_thinking, **kwargs},
        )

    def render_guarded(
        self,
        tokenizer: Tokenizer,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        enable_thinking: bool = False,
        most_tokens: int | None = None,
        **kwargs: Any,
    ) -> str:
        """As `render`, with the markers that users wrote broken: text for `tokenizer.encode_guarded` alone.

        `most_tokens` as in `encode`. Raises as `encode` does.
        """
        options = {"add_generation_prompt": add_generation_prompt, "enable_thinking": enable_thinking, **kwargs}
        messages, tools = normalise_messages(messages), normalise_tools(tools)
        if most_tokens is not None:
            size = len(self._run(messages, tools, options).encode("utf-8", "surrogatepass"))
            if size > most_tokens * tokenizer.longest_token:
                raise PromptLengthError(-(-size // tokenizer.longest_token), most_tokens)
        return self._run(guard_messages(messages, tokenizer), guard_tools(tools, tokenizer), options)

    def encode(
        self,
        tokenizer: Tokenizer,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        enable_thinking: bool = False,
        most_tokens: int | None = None,
        **kwargs: Any,
    ) -> list[int]:
        """The prompt of a conversation, as ids, in which every marker was written by the template.

        The ids of `render`, except that markers inside messages and tools are spelled out as ordinary text, so that no
        text can open a turn, close a tool's result or stand for an image. Raises as `render` does.

        With `most_tokens`, text that certainly takes more raises `PromptLengthError` before it is looked at closely:
        a prompt that is no longer may still have more tokens.
        """
        prompt = self.render_guarded(
            tokenizer,
            messages,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            enable_thinking=enable_thinking,
            most_tokens=most_tokens,
            **kwargs,
        )
        return tokenizer.encode_guarded(prompt)

    def _run(
        self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, options: Mapping[str, Any]
    ) -> str:
        try:
            return self._template.render({**self._named_tokens, **options, "messages": messages, "tools": tools})
        except jinja2.TemplateError as error:
            raise TemplateError(error.message or str(error)) from error
        except RecursionError as error:
            raise TemplateError("arguments or schemas are nested too deeply") from error
        except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
            # A template is foreign code: what it trips over is its refusal of the messages, not our crash.
            raise TemplateError(f"the chat template failed: {error}") from error


def _default_template(config: Any) -> str | None:
    """The template of a `tokenizer_config.json`: text, or a list of named ones of which `default` counts."""
    found = config.get("chat_template") if isinstance(config, dict) else None
    if isinstance(found, list):
        named = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else None


def _tokens_named_in(settings: Any) -> dict[str, str]:
    """Every `..._token` of a `tokenizer_config.json`: its text, or the `content` of its description."""
    items = settings.items() if isinstance(settings, dict) else ()
    named = {key: value.get("content") if isinstance(value, dict) else value for key, value in items}
    return {key: value for key, value in named.items() if key.endswith("_token") and isinstance(value, str)}


class _GenerationBlocks(Extension):
    """`{% generation %}` marks what a trainer learns from; rendering only needs what is inside."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own declaration

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _GenerationBlocks]
    )
    environment.filters["tojson"] = _tojson
    helpers: dict[str, Callable[..., Any]] = {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
    environment.globals.update(helpers)
    return environment


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # jinja2's own filter escapes HTML characters, which a model would read as text.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)
