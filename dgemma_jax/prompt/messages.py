"""Chat messages and tools in the exact shape a chat template can render.

OpenAI clients send arguments as JSON text, media under several part types and schemas in every dialect of JSON Schema;
templates know one form of each. These functions return new values and never change what they are given.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dgemma_jax.prompt.tokenizer import Tokenizer
from dgemma_jax.prompt.tool_schema import SchemaError, normalise_schema

# What a part of a message's content may call itself, and what templates call it.
_PART_TYPES = {
    "text": "text",
    "input_text": "text",
    "output_text": "text",
    "image": "image",
    "image_url": "image",
    "input_image": "image",
    "video": "video",
    "video_url": "video",
    "input_video": "video",
}
_REASONING_FIELDS = ("reasoning", "reasoning_content", "thinking")
_THOUGHT = re.compile(r"<\|channel>.*?(?:<channel\|>|\Z)", re.DOTALL)
_MOST_SCHEMAS = 20_000  # a few references that name each other in pairs would write out without end


class MessageError(ValueError):
    """A message or tool that cannot be put into a prompt; `param` is the path of the wrong field."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(f"{param}: {message}")
        self.param = param


def normalise_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages as a template reads them.

    Tool-call arguments become mappings, content parts become `text`, `image` or `video` (the media themselves are left
    out: a template writes placeholders in their order), reasoning stands under both names that templates look for.
    Raises `MessageError` for arguments that are no JSON object, and for unknown or malformed content parts.
    """
    return [_normalise_message(message, f"messages[{index}]") for index, message in enumerate(messages)]


def normalise_tools(tools: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]] | None:
    """Tools as `{"type": "function", "function": {...}}` with schemas a template can print; no tools become None.

    For schemas see `tool_schema`. Raises `MessageError` for a tool without a name, and for schemas that write out to
    too many.
    """
    left = iter(range(_MOST_SCHEMAS))
    return [_normalise_tool(tool, f"tools[{index}]", left) for index, tool in enumerate(tools or ())] or None


def guard_messages(messages: Sequence[Mapping[str, Any]], tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Normalised messages in which no text can forge a marker, alone or with its neighbours (see `Tokenizer.guard`).

    Thoughts that a client sent back inside an assistant's content are removed first, as the template would have done.
    """
    return [
        _guarded({**message, "content": _without_thoughts(message.get("content"))}, tokenizer)
        if message.get("role") in ("assistant", "model")
        else _guarded(message, tokenizer)
        for message in messages
    ]


def guard_tools(tools: Sequence[Mapping[str, Any]] | None, tokenizer: Tokenizer) -> list[dict[str, Any]] | None:
    """Normalised tools in which no text can forge a marker; None stays None."""
    return None if tools is None else _guarded(list(tools), tokenizer)


def _normalise_message(message: Mapping[str, Any], where: str) -> dict[str, Any]:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise MessageError(where, "must be an object with a role")
    result = {**message, "content": _normalise_content(message.get("content"), message["role"], f"{where}.content")}
    reasoning = next((message[name] for name in _REASONING_FIELDS if message.get(name)), None)
    if reasoning is not None:
        result |= {"reasoning": reasoning, "reasoning_content": reasoning}
    if calls := message.get("tool_calls"):
        if not isinstance(calls, list):
            raise MessageError(f"{where}.tool_calls", f"must be a list, found {type(calls).__name__}")
        result["tool_calls"] = [
            _normalise_call(call, f"{where}.tool_calls[{index}]") for index, call in enumerate(calls)
        ]
    return result


def _normalise_content(content: Any, role: str, where: str) -> Any:
    if content is None or isinstance(content, str):
        return content
    if isinstance(content, Mapping) and role == "tool":  # a tool's result may be an object
        return content
    if not isinstance(content, Sequence):
        raise MessageError(where, f"must be text or a list of parts, found {type(content).__name__}")
    return [_normalise_part(part, f"{where}[{index}]") for index, part in enumerate(content)]


def _normalise_part(part: Any, where: str) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    found = part.get("type") if isinstance(part, Mapping) else part
    kind = _PART_TYPES.get(found) if isinstance(found, str) else None
    if kind is None:
        raise MessageError(f"{where}.type", f"must be one of {', '.join(_PART_TYPES)}, found {found!r}")
    if kind != "text":
        return {"type": kind}
    if not isinstance(part.get("text"), str):
        raise MessageError(f"{where}.text", "must be a string")
    return {"type": "text", "text": part["text"]}


def _normalise_call(call: Any, where: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise MessageError(f"{where}.function", "must be an object with a name")
    arguments = _parse_arguments(function.get("arguments"), f"{where}.function.arguments")
    return {"type": "function", **call, "function": {**function, "arguments": arguments}}


def _parse_arguments(arguments: Any, where: str) -> dict[str, Any]:
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments) if arguments.strip() else {}
        except (ValueError, RecursionError) as error:
            raise MessageError(where, f"is not JSON: {error}") from error
    if arguments is None:
        return {}
    if not isinstance(arguments, Mapping):
        raise MessageError(where, f"must be a JSON object, found {type(arguments).__name__}")
    return dict(arguments)


def _normalise_tool(tool: Any, where: str, left: Iterator[int]) -> dict[str, Any]:
    function = tool.get("function", tool) if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise MessageError(f"{where}.function", "must be an object with a name")
    result = {key: value for key, value in function.items() if key not in ("type", "parameters")}
    result["description"] = result.get("description") or ""
    if parameters := function.get("parameters"):
        if not isinstance(parameters, Mapping):
            raise MessageError(f"{where}.function.parameters", "must be a JSON schema object")
        try:
            result["parameters"] = {"type": "object", **normalise_schema(parameters, left)}
        except SchemaError as error:
            raise MessageError(f"{where}.function.parameters", str(error)) from error
    return {"type": "function", "function": result}


def _without_thoughts(content: Any) -> Any:
    if isinstance(content, str):
        return _THOUGHT.sub("", content).replace("<channel|>", "")
    if isinstance(content, list):
        return [
            {**part, "text": _without_thoughts(part["text"])} if part["type"] == "text" else part for part in content
        ]
    return content


def _guarded(value: Any, tokenizer: Tokenizer) -> Any:
    if isinstance(value, str):
        return tokenizer.guard(value)
    if isinstance(value, Mapping):
        return {tokenizer.guard(str(key)): _guarded(item, tokenizer) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_guarded(item, tokenizer) for item in value]
    return value
