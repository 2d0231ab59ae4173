"""Typed messages to what the chat template reads, and the media that stand in them.

What is not read is refused here, by its place, before anything is fetched.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from serve.bodies import unsupported
from serve.engine import Detail, MediaKind
from serve.errors import InvalidRequestError
from serve.messages import (
    AssistantMessage,
    AudioPart,
    FilePart,
    FunctionMessage,
    ImagePart,
    Message,
    TextPart,
    ToolMessage,
    VideoPart,
)
from serve.tools import in_order

_ROLES = {"developer": "system"}
_UNREAD = {AudioPart: "audio", FilePart: "files"}


@dataclasses.dataclass(frozen=True)
class MediaPart:
    """An image or a video in a message: where its bytes are, and where the client wrote that."""

    kind: MediaKind
    url: str
    detail: Detail
    param: str


@dataclasses.dataclass(frozen=True)
class Conversation:
    """Messages as the chat template reads them, and the media that belong in their places, in order."""

    messages: list[dict[str, Any]]
    media: list[MediaPart]


def read(messages: Sequence[Message], reads: frozenset[MediaKind], most_media: int) -> Conversation:
    """The conversation of a request.

    Raises:
        InvalidRequestError: a role or a kind of content that is not read, or too many media.
    """
    media: list[MediaPart] = []
    rendered = [_message(message, f"messages[{place}]", reads, media) for place, message in in_order(messages)]
    if len(media) > most_media:
        raise InvalidRequestError(
            f"This server reads at most {most_media} images and videos in one request, found {len(media)}",
            param=media[most_media].param,
            code="too_many_media",
        )
    return Conversation(rendered, media)


def _message(message: Message, where: str, reads: frozenset[MediaKind], media: list[MediaPart]) -> dict[str, Any]:
    """Role, content as text or parts, and what else an earlier reply or a result has; its media go to `media`."""
    role = str(message.__struct_config__.tag)
    if isinstance(message, FunctionMessage):
        raise unsupported(f"A message of role `{role}`", f"{where}.role")
    content = _content(message.content, f"{where}.content", reads, media)
    rendered: dict[str, Any] = {"role": _ROLES.get(role, role), "content": content}
    if isinstance(message, ToolMessage):
        # One text: templates write a list of parts as a list, or not at all.
        text = content if isinstance(content, str) else "".join(part["text"] for part in content)
        return rendered | {"content": text, "tool_call_id": message.tool_call_id}
    if isinstance(message, AssistantMessage):
        if reasoning := message.reasoning or message.reasoning_content:
            rendered["reasoning"] = reasoning
        if message.tool_calls:
            rendered["tool_calls"] = [
                {
                    "id": call.id,
                    "type": call.type,
                    "function": {"name": call.function.name, "arguments": call.function.arguments},
                }
                for call in message.tool_calls
            ]
    return rendered


def _content(
    content: str | Sequence[Any] | None, where: str, reads: frozenset[MediaKind], media: list[MediaPart]
) -> str | list[dict[str, str]]:
    if content is None or isinstance(content, str):
        return content or ""
    parts = []
    for index, part in enumerate(content):
        if isinstance(part, TextPart):
            parts.append({"type": "text", "text": part.text})
        else:
            medium = _medium(part, f"{where}[{index}]", reads)
            media.append(medium)
            parts.append({"type": medium.kind})
    return parts


def _medium(part: Any, where: str, reads: frozenset[MediaKind]) -> MediaPart:
    match part:
        case ImagePart(image_url=image) if "image" in reads:
            return MediaPart("image", image.url, image.detail or "auto", f"{where}.image_url")
        case VideoPart(video_url=video) if "video" in reads:
            return MediaPart("video", video.url, "auto", f"{where}.video_url")
        case ImagePart() | VideoPart():
            what = "images" if isinstance(part, ImagePart) else "videos"
            message = f"The model of this server does not read {what}."
        case _:
            message = f"This server does not read {_UNREAD[type(part)]} yet."
    raise InvalidRequestError(message, param=where, code="unsupported_content")
