"""A typed request to what the engine understands: prompt, limits, seeds, and how to read the reply.

Checks what one field's type cannot say: fields that contradict each other, content not read yet, and whether prompt
and reply fit the model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from serve import answer_format, conversation
from serve.config import ServeConfig
from serve.conversation import Conversation
from serve.engine import (
    AnswerFormat,
    Engine,
    FormatError,
    Grammar,
    Job,
    Medium,
    PromptError,
    PromptLengthError,
    Sampling,
)
from serve.errors import InvalidRequestError, ModelNotFoundError, TooLongError
from serve.messages import Message
from serve.responses import FinishReason
from serve.schema import ChatDiffusion, ChatRequest, Diffusion, NamedTool
from serve.tools import declared, most_calls


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outline:
    """A request whose fields agree, before its media are fetched and its prompt is written."""

    conversation: Conversation
    tools: list[dict[str, Any]] | None
    format: AnswerFormat | None
    thinking: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """A request, ready to run: a job for each choice, what ends an answer, and what the client wants to see.

    `called`: why an answer with calls finished, in OpenAI's words; a call that was named beforehand is no news.
    """

    jobs: tuple[Job, ...]
    stops: tuple[str, ...]
    most_calls: int | None
    called: FinishReason
    include_reasoning: bool
    include_usage: bool


def outline(request: ChatRequest, engine: Engine, config: ServeConfig) -> Outline:
    """Settles all that needs neither the media nor the prompt's tokens; cheap.

    Raises:
        ModelNotFoundError: `model` is none of the server's names.
        InvalidRequestError: the request contradicts itself, or holds what is not read or done.
    """
    require_model(request.model, config.names)
    _require_few(request.messages, engine)
    if request.stream_options is not None and not request.stream:
        raise InvalidRequestError("`stream_options` is only for `stream: true`", param="stream_options")
    if request.n > (most := engine.slots + config.max_queue):
        raise InvalidRequestError(f"Every choice takes a place, and this server has {most}", param="n")
    if request.top_logprobs and not request.logprobs:
        raise InvalidRequestError("`top_logprobs` is only for `logprobs: true`", param="top_logprobs")
    if request.diffusion and request.diffusion.stream_drafts and not request.stream:
        raise InvalidRequestError("`stream_drafts` is only for `stream: true`", param="diffusion.stream_drafts")
    sampling(request.diffusion, engine.sampling)
    return Outline(
        conversation=conversation.read(request.messages, engine.media, config.max_media),
        tools=declared(request),
        format=answer_format.wanted(request),
        thinking=_thinking(request, config.thinking),
    )


def plan(
    request: ChatRequest, outline: Outline, media: Sequence[Medium], engine: Engine, config: ServeConfig, seed: int
) -> Plan:
    """Renders the prompt and settles every limit. `seed` is the request's own or drawn for it.

    Takes as long as tokenizing the prompt does; safe on any thread.

    Raises:
        InvalidRequestError: the chat template refuses the messages, they do not fit the model, or the answer cannot be
            held to the format that is asked for.
    """
    try:
        rendered = engine.render(outline.conversation.messages, thinking=outline.thinking, tools=outline.tools)
        prompt = engine.expand(rendered, media)
    except PromptLengthError as error:
        raise TooLongError("The messages take", f"at least {error.least}", engine.max_model_len, "messages") from None
    except PromptError as error:
        what = str(error) if error.param else f"The chat template refuses the messages: {error}"
        raise InvalidRequestError(what, param=error.param or "messages") from None
    job = Job(
        prompt=prompt.tokens,
        max_new_tokens=_max_new_tokens(request, len(prompt.tokens), engine, config.default_max_tokens),
        seed=seed,
        temperature=request.temperature,
        sampling=sampling(request.diffusion, engine.sampling),
        top_k=max(request.top_k, 0),
        top_p=request.top_p,
        logprobs=request.top_logprobs if request.logprobs else None,
        draft_every=_draft_every(request.diffusion),
        grammar=_grammar(outline, prompt.tokens, engine),
        images=prompt.images,
    )
    return Plan(
        jobs=tuple(dataclasses.replace(job, seed=nth_seed(seed, index)) for index in range(request.n)),
        stops=(request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ()),
        most_calls=most_calls(request),
        called="stop" if isinstance(request.tool_choice, NamedTool) else "tool_calls",
        include_reasoning=request.include_reasoning,
        include_usage=bool(request.stream_options and request.stream_options.include_usage),
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


def sampling(asked: Diffusion | None, own: Sampling) -> Sampling | None:
    """The checkpoint's sampling with what `diffusion` says instead; None where it says nothing.

    Raises:
        InvalidRequestError: the temperatures contradict each other.
    """
    given = {name: getattr(asked, name) for name in Diffusion.__struct_fields__} if asked else {}
    given = {name: value for name, value in given.items() if value is not None}
    if not given:
        return None
    made = dataclasses.replace(own, **given)
    if made.t_min >= made.t_max:
        name = "t_min" if "t_min" in given else "t_max"
        raise InvalidRequestError(
            f"`t_min` must be below `t_max`, found t_min={made.t_min}, t_max={made.t_max} (the checkpoint's own are "
            f"{own.t_min} and {own.t_max})",
            param=f"diffusion.{name}",
            code="invalid_value",
        )
    return made


def _grammar(outline: Outline, prompt: Sequence[int], engine: Engine) -> Grammar | None:
    if outline.format is None:
        return None
    try:
        return engine.grammar(outline.format, prompt, thinking=outline.thinking)
    except FormatError as error:
        param = outline.format.param
        raise InvalidRequestError(f"`{param}` cannot be held to: {error}", param=param, code="invalid_value") from None


def _draft_every(asked: ChatDiffusion | None) -> int:
    return (asked.every or 1) if asked and asked.stream_drafts else 0


def nth_seed(seed: int, index: int) -> int:
    """The seed of a choice: the request's own and `index`, where -2^63 follows 2^63 - 1.

    So a choice is what a request of its own gets with a seed that many higher.
    """
    return (seed + index + 2**63) % 2**64 - 2**63


def _max_new_tokens(request: ChatRequest, prompt_tokens: int, engine: Engine, default: int) -> int:
    """The request's own limit, or the server's default; never more than the rest of the context.

    A limit is an upper bound, so one beyond the context is no mistake: a reply that fills the context ends there, with
    `finish_reason: "length"`. `max_completion_tokens` wins over its older name `max_tokens`.
    """
    room = engine.room(prompt_tokens)
    if room < 1:
        raise TooLongError("The messages take", str(prompt_tokens), engine.max_model_len, "messages")
    return min(request.max_completion_tokens or request.max_tokens or default, room)


def _require_few(messages: Sequence[Message], engine: Engine) -> None:
    """Every message takes a token at least. Empty parts take none, but as many of them are nothing to render either."""
    contents = [getattr(message, "content", None) for message in messages]
    found = len(messages) + sum(len(content) for content in contents if isinstance(content, list))
    if found > engine.max_model_len:
        raise InvalidRequestError(
            f"The request has {found} messages and parts; this model has {engine.max_model_len} positions.",
            param="messages",
            code="context_length_exceeded",
        )
