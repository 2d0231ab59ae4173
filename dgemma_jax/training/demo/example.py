"""One training conversation: what a family draws and what the training run and the scorer read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from PIL import Image

Split = Literal["train", "test"]
Message = dict[str, Any]


@dataclass(frozen=True)
class Clip:
    """A short video: frames at even times from zero on."""

    frames: tuple[Image.Image, ...]
    seconds_per_frame: float = 1.0


Medium = Image.Image | Clip


@dataclass(frozen=True, kw_only=True)
class Example:
    """A conversation in OpenAI style whose last message is the one right answer.

    With `thinking`, the last message holds the thought as `reasoning`. `media` stand in the order in which the
    messages' parts `{"type": "image"}` and `{"type": "video"}` name them. `mistake` is a wrong answer, such as the
    model may give, for canvases to start from (`Objective.mistaken`).
    """

    family: str
    messages: list[Message]
    tools: list[dict[str, Any]] | None = None
    media: tuple[Medium, ...] = ()
    thinking: bool = False
    mistake: Message | None = None

    @property
    def prompt(self) -> list[Message]:
        """Everything before the answer."""
        return self.messages[:-1]

    @property
    def expected(self) -> Message:
        """The answer, to be matched exactly but for its thought."""
        return self.messages[-1]


def user(content: str, media: Sequence[Medium] = ()) -> Message:
    """A user message; its media come before the text."""
    if not media:
        return {"role": "user", "content": content}
    parts: list[dict[str, str]] = [{"type": "video" if isinstance(m, Clip) else "image"} for m in media]
    return {"role": "user", "content": [*parts, {"type": "text", "text": content}]}


def assistant(content: str | None, thought: str | None = None, calls: Sequence[dict[str, Any]] = ()) -> Message:
    """An assistant message; `calls` are tool calls as `call` makes them."""
    message: Message = {"role": "assistant", "content": content}
    if thought is not None:
        message["reasoning"] = thought
    if calls:
        message["tool_calls"] = list(calls)
    return message


def call(name: str, arguments: dict[str, Any], number: int = 0) -> dict[str, Any]:
    """A tool call with its arguments as a mapping."""
    return {"id": f"call_{number}", "type": "function", "function": {"name": name, "arguments": arguments}}


def ask(family: str, question: str, answer: str, thought: str | None = None, *, mistake: str | None = None) -> Example:
    """The usual example: one question, one answer. With a thought, thinking is on; a mistake has the same thought."""
    messages = [user(question), assistant(answer, thought)]
    wrong = None if mistake is None else assistant(mistake, thought)
    return Example(family=family, messages=messages, thinking=thought is not None, mistake=wrong)
