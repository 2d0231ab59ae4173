"""The wire, inward: the chat request as types, and how bytes become one.

A request field is one of four things: a field of `ChatRequest` (done), a name in `HARMLESS` (taken, without effect on
the reply), a name in `NEUTRAL` (known, not done yet: only values that change nothing pass), or unknown. The last two
are answered 400 with `param` naming the field. A field that is null counts as absent, unless it must be there.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from serve.errors import InvalidRequestError
from serve.unreadable import unreadable

HARMLESS = frozenset(
    {
        "metadata",
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "store",
        "user",
    }
)
"""Fields for the caller's own bookkeeping, and hints that no reply of this server depends on. README lists them."""

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "ignore_eos": (False,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "min_p": (0,),
    "min_tokens": (0,),
    "modalities": (["text"],),
    "n": (1,),
    "parallel_tool_calls": (True, False),  # without tools, either asks for nothing
    "prediction": (),
    "presence_penalty": (0,),
    "reasoning": ({},),
    "repetition_penalty": (1,),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "stop_token_ids": ([],),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_k": (0, -1),
    "top_logprobs": (0,),
    "top_p": (1,),
    "verbosity": ("medium",),
    "web_search_options": (),
}
"""Fields this server knows but does not do yet, each with the values that ask for nothing (besides null)."""

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
StopString = Annotated[str, Meta(min_length=1, max_length=1024)]
Seed = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]


class TextPart(Struct, frozen=True, tag_field="type", tag="text", forbid_unknown_fields=True):
    text: str


class ImagePart(Struct, frozen=True, tag_field="type", tag="image_url"):
    """Recognised so that the refusal can name it."""


class VideoPart(Struct, frozen=True, tag_field="type", tag="video_url"):
    """Recognised so that the refusal can name it."""


class AudioPart(Struct, frozen=True, tag_field="type", tag="input_audio"):
    """Recognised so that the refusal can name it."""


class FilePart(Struct, frozen=True, tag_field="type", tag="file"):
    """Recognised so that the refusal can name it."""


TextParts = Annotated[list[TextPart], Meta(min_length=1)]
UserParts = Annotated[list[TextPart | ImagePart | VideoPart | AudioPart | FilePart], Meta(min_length=1)]
Nothing = Annotated[list[Any], Meta(max_length=0)] | None


class _Message(Struct, frozen=True, kw_only=True, tag_field="role", forbid_unknown_fields=True):
    name: str | None = None
    """Taken without effect: the chat template has no place for it."""


class SystemMessage(_Message, frozen=True, tag="system"):
    content: str | TextParts


class DeveloperMessage(_Message, frozen=True, tag="developer"):
    content: str | TextParts


class UserMessage(_Message, frozen=True, tag="user"):
    content: str | UserParts


class AssistantMessage(_Message, frozen=True, kw_only=True, tag="assistant"):
    """An earlier reply, as this server or another sent it: the fields that replies carry may come back empty."""

    content: str | TextParts | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[Any] | None = None
    function_call: None = None
    refusal: None = None
    audio: None = None
    annotations: Nothing = None


class ToolMessage(Struct, frozen=True, tag_field="role", tag="tool"):
    """Recognised so that the refusal can name it."""


class FunctionMessage(Struct, frozen=True, tag_field="role", tag="function"):
    """Recognised so that the refusal can name it."""


Message = SystemMessage | DeveloperMessage | UserMessage | AssistantMessage | ToolMessage | FunctionMessage


class TemplateKwargs(Struct, frozen=True, forbid_unknown_fields=True):
    """The chat template's own switch, under the two names in use."""

    thinking: bool | None = None
    enable_thinking: bool | None = None


class StreamOptions(Struct, frozen=True, forbid_unknown_fields=True):
    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class ChatRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`POST /v1/chat/completions`, as far as this server does it. An absent field is null."""

    model: str
    messages: Annotated[list[Message], Meta(min_length=1)]
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Meta(ge=1)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] = 1.0
    seed: Seed | None = None
    stop: StopString | Annotated[list[StopString], Meta(max_length=4)] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    chat_template_kwargs: TemplateKwargs | None = None
    reasoning_effort: Effort | None = None
    include_reasoning: bool = True


_REQUIRED = frozenset(field.name for field in msgspec.structs.fields(ChatRequest) if field.required)
_VALIDATION = re.compile(r"^(?P<what>.*?)(?: - at `\$\.?(?P<path>.*)`)?$", re.DOTALL)
_FIELD = re.compile(r"field `(.*)`", re.DOTALL)
_CODES = {"Object contains unknown field": "unknown_parameter", "Object missing": "missing_required_parameter"}


def decode(body: bytes) -> ChatRequest:
    """Reads a request body.

    Raises:
        InvalidRequestError: the body is not JSON, or a field has the wrong type, is unknown, or asks for what
            is not done yet.
    """
    found = _json_object(body)
    wanted = {name for name, value in found.items() if value is not None or name in _REQUIRED} - HARMLESS
    fields = {name: value for name, value in found.items() if name in wanted}
    for name in [name for name in fields if name in NEUTRAL]:
        value = fields.pop(name)
        if not any(_same(value, neutral) for neutral in NEUTRAL[name]):
            raise unsupported(f"`{name}`", name)
    try:
        return msgspec.convert(fields, ChatRequest)
    except msgspec.ValidationError as error:
        raise _invalid(str(error)) from None


def unsupported(what: str, param: str) -> InvalidRequestError:
    """The refusal of something that is known, but not done by this server yet."""
    return InvalidRequestError(
        f"{what} is not supported by this server yet.", param=param, code="unsupported_parameter"
    )


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise unreadable(body) or InvalidRequestError(
            f"The request body is not valid JSON: {error}", code="invalid_json"
        ) from None
    except RecursionError:
        raise InvalidRequestError("The request body is nested too deeply", code="invalid_json") from None
    if not isinstance(value, dict):
        raise InvalidRequestError("The request body must be a JSON object", code="invalid_json")
    return value


def _same(value: Any, neutral: Any) -> bool:
    """Equal as JSON, where true is not 1."""
    return value == neutral and isinstance(value, bool) == isinstance(neutral, bool)


def _invalid(message: str) -> InvalidRequestError:
    """msgspec's message with its path (`$.messages[0].content`) and field name as `param`."""
    what, path = _VALIDATION.match(message).group("what", "path")  # type: ignore[union-attr]  # it matches anything
    field = _FIELD.search(what)
    param = path or None
    if field:
        param = f"{path}.{field[1]}" if path else field[1]
    code = next((code for start, code in _CODES.items() if what.startswith(start)), "invalid_value")
    return InvalidRequestError(what if param is None else f"{what} - at `{param}`", param=param, code=code)
