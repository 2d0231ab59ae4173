"""A typed request to what the engine understands: prompt tokens, limits, seed, and how to read the reply.

Checks what one field's type cannot say: fields that contradict each other, content not read yet, and whether prompt
and reply fit the model.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from serve.config import ServeConfig
from serve.engine import Engine, Job, PromptError, PromptLengthError
from serve.errors import InvalidRequestError, ModelNotFoundError
from serve.schema import (
    AssistantMessage,
    AudioPart,
    ChatRequest,
    FilePart,
    FunctionMessage,
    ImagePart,
    Message,
    TextPart,
    ToolMessage,
    VideoPart,
    unsupported,
)

_ROLES = {"developer": "system"}
_UNREAD = {ImagePart: "images", VideoPart: "videos", AudioPart: "audio", FilePart: "files"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """A request, ready to run: the job, the strings that end its answer, and what the client wants to see."""

    job: Job
    stops: tuple[str, ...]
    include_reasoning: bool
    include_usage: bool


def plan(request: ChatRequest, engine: Engine, config: ServeConfig, seed: int) -> Plan:
    """Renders the prompt and settles every limit. `seed` is the request's own or drawn for it.

    Takes as long as tokenizing the prompt does; safe on any thread.

    Raises:
        ModelNotFoundError: `model` is none of the server's names.
        InvalidRequestError: the request contradicts itself, holds what is not read yet, or does not fit the model.
    """
    require_model(request.model, config.names)
    options = request.stream_options
    if options is not None and not request.stream:
        raise InvalidRequestError("`stream_options` is only for `stream: true`", param="stream_options")
    messages = [_message(message, f"messages[{index}]") for index, message in enumerate(request.messages)]
    try:
        prompt = engine.render(messages, thinking=_thinking(request, config.thinking))
    except PromptLengthError as error:
        raise _too_long(f"at least {error.least}", engine) from None
    except PromptError as error:
        raise InvalidRequestError(f"The chat template refuses the messages: {error}", param="messages") from None
    job = Job(
        prompt=prompt,
        max_new_tokens=_max_new_tokens(request, len(prompt), engine, config.default_max_tokens),
        seed=seed,
        temperature=request.temperature,
    )
    return Plan(
        job=job,
        stops=(request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ()),
        include_reasoning=request.include_reasoning,
        include_usage=bool(options and options.include_usage),
    )


def require_model(name: str, names: tuple[str, ...]) -> str:
    """The server's own spelling of a requested model name; letter case does not matter.

    Raises:
        ModelNotFoundError: the server has no such name.
    """
    for known in names:
        if known.lower() == name.lower():
            return known
    raise ModelNotFoundError(name, names)


def _message(message: Message, where: str) -> dict[str, Any]:
    """One message as the chat template reads it: role, content as text or text parts, reasoning of an earlier reply."""
    role = message.__struct_config__.tag
    if isinstance(message, ToolMessage | FunctionMessage):
        raise unsupported(f"A message of role `{role}`", f"{where}.role")
    rendered = {"role": _ROLES.get(str(role), role), "content": _content(message.content, f"{where}.content")}
    if isinstance(message, AssistantMessage):
        if message.tool_calls:
            raise unsupported("An earlier tool call", f"{where}.tool_calls")
        if reasoning := message.reasoning or message.reasoning_content:
            rendered["reasoning"] = reasoning
    return rendered


def _content(content: str | list[Any] | None, where: str) -> str | list[dict[str, str]]:
    if content is None or isinstance(content, str):
        return content or ""
    return [_part(part, f"{where}[{index}]") for index, part in enumerate(content)]


def _part(part: Any, where: str) -> dict[str, str]:
    if not isinstance(part, TextPart):
        raise InvalidRequestError(
            f"This server does not read {_UNREAD[type(part)]} yet.", param=where, code="unsupported_content"
        )
    return {"type": "text", "text": part.text}


def _thinking(request: ChatRequest, default: bool) -> bool:
    """`chat_template_kwargs` decides, then `reasoning_effort`, then the server's default.

    The model thinks or does not: every effort but "none" means that it does.
    """
    kwargs = request.chat_template_kwargs
    said = {kwargs.thinking, kwargs.enable_thinking} - {None} if kwargs else set()
    if len(said) > 1:
        raise InvalidRequestError("`thinking` and `enable_thinking` disagree", param="chat_template_kwargs")
    if said:
        return bool(said.pop())
    return default if request.reasoning_effort is None else request.reasoning_effort != "none"


def _max_new_tokens(request: ChatRequest, prompt_tokens: int, engine: Engine, default: int) -> int:
    """The request's own limit, or the server's default; never more than the rest of the context.

    A limit is an upper bound, so one beyond the context is no mistake: a reply that fills the context ends there, with
    `finish_reason: "length"`. `max_completion_tokens` wins over its older name `max_tokens`.
    """
    room = engine.room(prompt_tokens)
    if room < 1:
        raise _too_long(str(prompt_tokens), engine)
    return min(request.max_completion_tokens or request.max_tokens or default, room)


def _too_long(tokens: str, engine: Engine) -> InvalidRequestError:
    return InvalidRequestError(
        f"The messages are {tokens} tokens; with a reply they do not fit the {engine.max_model_len} "
        "positions of this model.",
        param="messages",
        code="context_length_exceeded",
    )
