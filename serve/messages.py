"""The wire, inward: the messages of a conversation and what they hold, as types.

What is known but not read (sound, files, OpenAI's older functions) has a type too, so that its refusal can name it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

Detail = Literal["auto", "low", "high"]
FunctionName = Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_.-]+(:[a-zA-Z0-9_.-]+)*$(?!\n)", max_length=64)]
"""OpenAI's names, and those with dots and colons, which the chat format can carry too."""


class TextPart(Struct, frozen=True, tag_field="type", tag="text", forbid_unknown_fields=True):
    text: str


class ImageUrl(Struct, frozen=True, forbid_unknown_fields=True):
    """Where an image is: an http(s) or a `data:` URL. `detail` chooses how many tokens it becomes."""

    url: str
    detail: Detail | None = None


class VideoUrl(Struct, frozen=True, forbid_unknown_fields=True):
    """Where a video is: an http(s) or a `data:` URL."""

    url: str


class ImagePart(Struct, frozen=True, tag_field="type", tag="image_url", forbid_unknown_fields=True):
    image_url: ImageUrl


class VideoPart(Struct, frozen=True, tag_field="type", tag="video_url", forbid_unknown_fields=True):
    video_url: VideoUrl


class AudioPart(Struct, frozen=True, tag_field="type", tag="input_audio"):
    """Recognised so that the refusal can name it."""


class FilePart(Struct, frozen=True, tag_field="type", tag="file"):
    """Recognised so that the refusal can name it."""


TextParts = Annotated[list[TextPart], Meta(min_length=1)]
UserParts = Annotated[list[TextPart | ImagePart | VideoPart | AudioPart | FilePart], Meta(min_length=1)]
Nothing = Annotated[list[Any], Meta(max_length=0)] | None


class CalledFunction(Struct, frozen=True, forbid_unknown_fields=True):
    """`arguments` is the text of a JSON object. The name is whatever some model wrote.

    `parsed_arguments` is what SDKs add for their callers, without effect here, as is `parsed` in a message.
    """

    name: Annotated[str, Meta(min_length=1)]
    arguments: str
    parsed_arguments: Any = None


class EarlierCall(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A call in an earlier reply. `index` is left over where a client put the reply together from deltas."""

    id: Annotated[str, Meta(min_length=1)]
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = None


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
    tool_calls: list[EarlierCall] | None = None
    function_call: None = None
    refusal: None = None
    audio: None = None
    annotations: Nothing = None
    parsed: Any = None


class ToolMessage(_Message, frozen=True, kw_only=True, tag="tool"):
    """The result of one call of the assistant message before it."""

    tool_call_id: str
    content: str | TextParts


class FunctionMessage(Struct, frozen=True, tag_field="role", tag="function"):
    """Recognised so that the refusal can name it."""


Message = SystemMessage | DeveloperMessage | UserMessage | AssistantMessage | ToolMessage | FunctionMessage
