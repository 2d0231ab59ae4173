"""The pictures and videos that the messages of a data file name: paths beside the file, or data URLs."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

from dgemma_jax.config import ProcessorConfig
from dgemma_jax.media.error import MediaError
from dgemma_jax.media.image import read_image, to_patches
from dgemma_jax.media.prompt import Film, Picture
from dgemma_jax.media.video import iter_video
from dgemma_jax.prompt.messages import normalise_messages


def read_media(
    messages: Sequence[Mapping[str, Any]], folder: Path, processor: ProcessorConfig | None
) -> list[Picture | Film]:
    """Every image and video part in order, cut into patches.

    A part names its source under its own type or under "image", "video", "url" or "path", as text or as {"url": text}.

    Raises:
        MediaError: a source that is missing, cannot be read or is on the network; or a model that reads text only.
        MessageError: parts that are not understood.
    """
    media: list[Picture | Film] = []
    for where, kind, part in _parts(messages):
        if processor is None:
            raise MediaError(f"{where}: this checkpoint has no vision tower: it reads text only")
        try:
            data = _fetch(_source(part, kind), folder)
            media.append(_picture(data, processor) if kind == "image" else _film(data, processor))
        except MediaError as error:
            raise MediaError(f"{where}: {error}") from error
    return media


def _parts(messages: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    for index, (message, normal) in enumerate(zip(messages, normalise_messages(messages), strict=True)):
        if isinstance(normal["content"], list):
            for number, part in enumerate(normal["content"]):
                if part["type"] != "text":
                    yield f"messages[{index}].content[{number}]", part["type"], message["content"][number]


def _source(part: Mapping[str, Any], kind: str) -> str:
    names = (part["type"], kind, f"{kind}_url", "url", "path")
    value = next((part[name] for name in names if part.get(name)), None)
    value = value.get("url") if isinstance(value, Mapping) else value
    if not isinstance(value, str):
        raise MediaError(f'wanted "{kind}", a path beside the data file or a data URL')
    return value


def _fetch(source: str, folder: Path) -> bytes:
    if source.startswith("data:"):
        return _inline(source)
    if "://" in source:
        raise MediaError(f"nothing is downloaded while training: save {source[:80]} beside the data file")
    try:
        return (folder / source).read_bytes()
    except (OSError, ValueError) as error:
        raise MediaError(f"cannot read {folder / source}: {getattr(error, 'strerror', None) or error}") from error


def _inline(url: str) -> bytes:
    head, comma, body = url.partition(",")
    if not comma:
        raise MediaError("a data URL needs a comma before its data")
    if not head.endswith(";base64"):
        return unquote_to_bytes(body)
    try:
        return base64.b64decode(body, validate=True)
    except binascii.Error as error:
        raise MediaError(f"the data URL is not base64: {error}") from error


def _picture(data: bytes, processor: ProcessorConfig) -> Picture:
    return Picture(to_patches(read_image(data), processor))


def _film(data: bytes, processor: ProcessorConfig) -> Film:
    budget = processor.video_max_soft_tokens
    frames = iter_video(data, processor)
    return Film([(frame.seconds, to_patches(frame.image, processor, budget)) for frame in frames])
