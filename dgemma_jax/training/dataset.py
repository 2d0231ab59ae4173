"""Fine-tuning data: a JSONL file of chats in OpenAI's form, one object a line, to numbered training rows.

    {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}], "tools": [...]}
    {"prompt": "...", "completion": "..."}

The last assistant message is what is learned; with `"train": "all"` every one of them, a row for each. Thinking is on
for a row whose answer has `reasoning`, unless `"thinking"` says otherwise. A file with a row that cannot be used is
refused with the line's number: nothing is cut or left out.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dgemma_jax.config import ModelConfig, ProcessorConfig
from dgemma_jax.config_json import read_model_config
from dgemma_jax.processor_json import read_processor_config
from dgemma_jax.prompt.template import ChatTemplate
from dgemma_jax.prompt.tokenizer import Tokenizer
from dgemma_jax.training.batch_shapes import RowShape
from dgemma_jax.training.conversation import to_row
from dgemma_jax.training.media_parts import read_media
from dgemma_jax.training.rows import Row

KEYS = ("messages", "tools", "train", "thinking", "prompt", "completion")
HARMLESS_KEYS = ("id", "metadata")
_ROLES = ("system", "developer", "user", "assistant", "model", "tool", "function")
_ANSWERING = ("assistant", "model")
_REASONING = ("reasoning", "reasoning_content", "thinking")
_MESSAGE_KEYS = ("role", "content", "name", "tool_calls", "tool_call_id", "tool_responses", "id", *_REASONING)
_MOST_SHOWN = 20


class DataError(ValueError):
    """A data file that cannot be trained on: all that is wrong with it, by line."""


@dataclasses.dataclass(frozen=True)
class ChatFormat:
    """What turns a conversation into a row; all of it comes with the checkpoint."""

    config: ModelConfig
    tokenizer: Tokenizer
    template: ChatTemplate
    processor: ProcessorConfig | None

    @classmethod
    def from_folder(cls, folder: Path) -> ChatFormat:
        """Reads everything but the weights. Raises as the readers of each part."""
        config = read_model_config(folder)
        processor = None if config.vision is None else read_processor_config(folder, config)
        tokenizer = Tokenizer.from_folder(folder)
        tokenizer.require()
        return cls(config, tokenizer, ChatTemplate.from_folder(folder), processor)


@dataclasses.dataclass(frozen=True)
class Sample:
    """A conversation that ends with the answer to learn, and the line it stands in."""

    line: int
    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] | None
    thinking: bool


class Dataset:
    """The rows of a file. Rows with media are made anew at each use: their pixels would fill the memory."""

    def __init__(self, file: Path, chat: ChatFormat) -> None:
        """Without rows; `read` adds them."""
        self.file, self._chat = file, chat
        self.samples: list[Sample] = []
        self.shapes: list[RowShape] = []
        self._rows: list[Row | None] = []
        self._pixels = hashlib.sha256()

    @classmethod
    def read(cls, file: Path, chat: ChatFormat, max_length: int) -> Dataset:
        """Reads and renders every line.

        Raises:
            DataError: a line that is no conversation, whose media cannot be read, or that is longer than `max_length`
                tokens; all such lines are collected. Or a file without rows.
            OSError: the file cannot be read.
        """
        problems: list[str] = []
        dataset, lines = cls(file, chat), _lines(file)
        for number, text in lines:
            try:
                for sample in _samples(number, text):
                    dataset._add(sample, _fitting(render(sample, chat, file.parent), chat.config, max_length))
            except ValueError as error:
                problems.append(f"line {number}: {error}")
        if problems:
            raise DataError(_collected(file, problems, len(lines)))
        if not dataset.samples:
            raise DataError(f"{file} has no rows: wanted one JSON object a line")
        return dataset

    def _add(self, sample: Sample, row: Row) -> None:
        """A row as `render` makes it; its media are read again when they are needed."""
        length = self._chat.config.canvas_length
        self.samples.append(sample)
        self.shapes.append(RowShape(row.length(length), row.blocks(length), row.images))
        self._rows.append(None if row.images else row)
        if row.patches_INP is not None:
            self._pixels.update(row.patches_INP.tobytes())

    def __len__(self) -> int:
        return len(self.samples)

    def row(self, number: int) -> Row:
        """Row `number` in the order of the file."""
        return self._rows[number] or render(self.samples[number], self._chat, self.file.parent)

    def shuffled(self, index: int, seed: int) -> Row:
        """Row `index` of the endless sequence of epochs, each in an order of its own: a function of its arguments."""
        epoch, place = divmod(index, len(self))
        return self.row(int(_order(len(self), seed, epoch)[place]))

    def sha256(self) -> str:
        """Of the file's bytes, and of what its images and videos showed when it was read."""
        digest = hashlib.sha256(self.file.read_bytes())
        if any(shape.images for shape in self.shapes):
            digest.update(self._pixels.digest())
        return digest.hexdigest()


def render(sample: Sample, chat: ChatFormat, folder: Path) -> Row:
    """A sample as token ids and patches; paths are relative to `folder`. Raises ValueError for what does not fit."""
    media = read_media(sample.messages, folder, chat.processor)
    return to_row(
        sample.messages,
        chat.tokenizer,
        chat.template,
        chat.config,
        tools=sample.tools,
        media=media,
        thinking=sample.thinking,
    )


@functools.lru_cache(maxsize=8)
def _order(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(count)


def _lines(file: Path) -> list[tuple[int, bytes]]:
    lines = enumerate(file.read_bytes().split(b"\n"), start=1)
    return [(number, line) for number, line in lines if line.strip()]


def _fitting(row: Row, config: ModelConfig, max_length: int) -> Row:
    length, positions = row.length(config.canvas_length), config.text.max_position_embeddings
    if length > max_length:
        answer = f"{len(row.answer)} of the answer, filled to whole canvases of {config.canvas_length}"
        raise DataError(f"takes {length} tokens ({len(row.prompt)} of the prompt, {answer}), allowed are {max_length}")
    if length > positions:
        raise DataError(f"takes {length} tokens, the model has {positions} positions")
    return row


def _collected(file: Path, problems: list[str], lines: int) -> str:
    shown = [f"\n- {problem}" for problem in problems[:_MOST_SHOWN]]
    more = len(problems) - len(shown)
    shown += [f"\n- and {more} more"] if more else []
    return f"{file}: {len(problems)} of {lines} rows cannot be used:" + "".join(shown)


def _samples(number: int, text: bytes) -> Iterator[Sample]:
    """The samples of a line. Raises ValueError."""
    values = _object(text)
    if unknown := sorted(set(values) - {*KEYS, *HARMLESS_KEYS}):
        raise DataError(f"unknown key {', '.join(unknown)}; known are {', '.join((*KEYS, *HARMLESS_KEYS))}")
    messages = _checked(_messages(values))
    train = values.get("train", "last")
    if train not in ("last", "all"):
        raise DataError(f'train must be "last" or "all", found {train!r}')
    tools, thinking = values.get("tools"), values.get("thinking")
    if tools is not None and not isinstance(tools, list):
        raise DataError(f"tools must be a list, found {type(tools).__name__}")
    if thinking is not None and not isinstance(thinking, bool):
        raise DataError(f"thinking must be true or false, found {thinking!r}")
    last = len(messages) - 1
    answers = [index for index, message in enumerate(messages) if message["role"] in _ANSWERING]
    if last not in answers:
        raise DataError("the last message must be the assistant's: it is what is learned")
    for index in answers if train == "all" else [last]:
        if not (messages[index].get("content") or messages[index].get("tool_calls")):
            raise DataError(f"messages[{index}] is to be learned, but has neither content nor tool_calls")
        reasons = any(messages[index].get(name) for name in _REASONING)
        yield Sample(number, messages[: index + 1], tools, reasons if thinking is None else thinking)


def _object(text: bytes) -> dict[str, Any]:
    try:
        values = json.loads(text.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"not JSON: {error}") from error
    if not isinstance(values, dict):
        raise DataError(f"wanted an object, found {type(values).__name__}")
    return values


def _messages(values: Mapping[str, Any]) -> Any:
    """The conversation, of which a prompt and its completion are the short form; each may also be messages."""
    pair = [values.get("prompt"), values.get("completion")]
    if ("messages" in values) == any(part is not None for part in pair) or (None in pair and "messages" not in values):
        raise DataError("wanted either messages, or prompt and completion")
    if "messages" in values:
        return values["messages"]
    messages: list[Any] = []
    for part, role in zip(pair, ("user", "assistant"), strict=True):
        messages += part if isinstance(part, list) else [{"role": role, "content": part}]
    return messages


def _checked(messages: Any) -> list[Mapping[str, Any]]:
    if not isinstance(messages, list) or not messages:
        raise DataError("messages must be a list of at least one message")
    for index, message in enumerate(messages):
        role = message.get("role") if isinstance(message, dict) else None
        if role not in _ROLES:
            raise DataError(f"messages[{index}].role must be one of {', '.join(_ROLES)}, found {role!r}")
        _check_keys(message, f"messages[{index}]")
    return messages


def _check_keys(message: Mapping[str, Any], where: str) -> None:
    """Raises DataError for a key that means something to whoever wrote it and nothing here."""
    if message.get("weight", 1) != 1:
        raise DataError(
            f'{where}.weight must be 1, found {message["weight"]!r}; "train" says which answers are learned'
        )
    said = {key for key, value in message.items() if value or value is False} - {"weight"}
    if unknown := sorted(said - set(_MESSAGE_KEYS)):
        raise DataError(f"{where} has the unknown key {', '.join(unknown)}; known are {', '.join(_MESSAGE_KEYS)}")
