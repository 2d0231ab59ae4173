"""Drawn conversations as bodies of `POST /v1/chat/completions`, media as PNG and H.264 files, and what comes back."""

import base64
import io
import json
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import av
from PIL import Image

from dgemma_jax.training.demo.acceptance import Reply
from dgemma_jax.training.demo.example import Clip, Example, Medium, Message


def request_of(example: Example) -> dict[str, Any]:
    """The body of a request for what `example` expects, but for the model's name and a seed."""
    media = iter(example.media)
    body: dict[str, Any] = {
        "messages": [_message(message, media) for message in example.prompt],
        "chat_template_kwargs": {"thinking": example.thinking},
    }
    return body | ({"tools": example.tools} if example.tools else {})


def reply_of(completion: Mapping[str, Any]) -> Reply:
    """What a completion says, as JSON decodes it."""
    (choice,) = completion["choices"]
    message = choice["message"]
    made = tuple((call["function"]["name"], call["function"]["arguments"]) for call in message.get("tool_calls") or ())
    ended = choice["finish_reason"] in ("stop", "tool_calls")
    return Reply(message.get("reasoning") or "", message.get("content") or "", made, ended)


def _message(message: Message, media: Any) -> Message:
    sent = dict(message)
    if isinstance(message.get("content"), list):
        sent["content"] = [part if part["type"] == "text" else _part(next(media)) for part in message["content"]]
    if calls := message.get("tool_calls"):
        sent["tool_calls"] = [
            call | {"function": call["function"] | {"arguments": json.dumps(call["function"]["arguments"])}}
            for call in calls
        ]
    return sent


def _part(medium: Medium) -> dict[str, Any]:
    if isinstance(medium, Clip):
        return {"type": "video_url", "video_url": {"url": _data_url("video/mp4", mp4(medium))}}
    return {"type": "image_url", "image_url": {"url": _data_url("image/png", png(medium))}}


def _data_url(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def png(picture: Image.Image) -> bytes:
    """A PNG file."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def mp4(clip: Clip) -> bytes:
    """An H.264 file of the clip's frames, almost without loss."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        width, height = clip.frames[0].size
        stream = container.add_stream(
            "libx264", rate=Fraction(1) / Fraction(clip.seconds_per_frame), options={"crf": "1"}
        )
        stream.width, stream.height, stream.pix_fmt = width - width % 2, height - height % 2, "yuv420p"
        for frame in clip.frames:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())
    return file.getvalue()
