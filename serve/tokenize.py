"""`POST /tokenize` and `POST /detokenize`, in vLLM's shapes: a text or a conversation to tokens, tokens to text.

Nothing here waits for the model.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeVar

from aiohttp import web
from msgspec import Meta, Struct

from serve import bodies, translate
from serve.completion_schema import Token
from serve.engine import Engine, PromptError, PromptLengthError
from serve.errors import InvalidRequestError
from serve.handlers import CONFIG, ENGINE, MEDIA, MEDIA_MEMORY, PROMPTS
from serve.messages import Message
from serve.schema import ChatRequest, TemplateKwargs, Tool

T = TypeVar("T")
_NEUTRAL: bodies.Neutral = {
    "add_generation_prompt": (True,),
    "add_special_tokens": (False,),  # the chat template writes them itself
    "chat_template": (),
    "continue_final_message": (False,),
    "media_io_kwargs": (),
    "mm_processor_kwargs": (),
}


class TokenizeTextRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Markers written in `prompt` are markers. `add_special_tokens`: the token that begins every prompt comes first."""

    prompt: str
    model: str | None = None
    add_special_tokens: bool = True
    return_token_strs: bool = False


class TokenizeChatRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The prompt of `POST /v1/chat/completions` for these messages."""

    messages: Annotated[list[Message], Meta(min_length=1)]
    model: str | None = None
    tools: list[Tool] | None = None
    chat_template_kwargs: TemplateKwargs | None = None
    return_token_strs: bool = False


class Tokenized(Struct, frozen=True, kw_only=True):
    count: int
    max_model_len: int
    tokens: Sequence[int]
    token_strs: list[str] | None


class DetokenizeRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    tokens: list[Token]
    model: str | None = None


class Detokenized(Struct, frozen=True):
    prompt: str


async def tokenize(request: web.Request) -> web.Response:
    """`POST /tokenize`"""
    found = bodies.json_object(await bodies.read(request))
    return bodies.answer(await bodies.before_stop(request.app, _tokenized(request, found)))


async def _tokenized(request: web.Request, found: dict[str, Any]) -> Tokenized:
    engine = request.app[ENGINE]
    tokens = await (_of_messages if "messages" in found else _of_text)(request, found)
    strings = await _in_thread(request, _spelled, engine, tokens) if found.get("return_token_strs") else None
    return Tokenized(count=len(tokens), max_model_len=engine.max_model_len, tokens=tokens, token_strs=strings)


async def detokenize(request: web.Request) -> web.Response:
    """`POST /detokenize`"""
    wanted = bodies.decode(await bodies.read(request), DetokenizeRequest)
    _require_model(request, wanted.model)
    try:
        work = _in_thread(request, request.app[ENGINE].text.detokenize, wanted.tokens)
        text = await bodies.before_stop(request.app, work)
    except PromptError as error:
        raise InvalidRequestError(str(error), param="tokens", code="invalid_value") from None
    return bodies.answer(Detokenized(text))


async def _of_text(request: web.Request, found: dict[str, Any]) -> tuple[int, ...]:
    wanted = bodies.convert(found, TokenizeTextRequest)
    _require_model(request, wanted.model)
    read = functools.partial(request.app[ENGINE].text.tokenize, wanted.prompt, bos=wanted.add_special_tokens)
    try:
        return await _in_thread(request, read)
    except PromptLengthError as error:
        raise InvalidRequestError(
            f"The prompt is at least {error.least} tokens, far more than this model has positions.",
            param="prompt",
            code="context_length_exceeded",
        ) from None


async def _of_messages(request: web.Request, found: dict[str, Any]) -> tuple[int, ...]:
    """The tokens that a chat request with these messages would have as its prompt, media included."""
    wanted = bodies.convert(found, TokenizeChatRequest, neutral=_NEUTRAL)
    app = request.app
    chat = ChatRequest(
        model=_require_model(request, wanted.model),
        messages=wanted.messages,
        tools=wanted.tools,
        chat_template_kwargs=wanted.chat_template_kwargs,
    )
    outline = translate.outline(chat, app[ENGINE], app[CONFIG])
    with app[MEDIA_MEMORY].share() as share:
        media = await app[MEDIA].read(outline.conversation.media, share)
        plan = await _in_thread(request, translate.plan, chat, outline, media, app[ENGINE], app[CONFIG], 0)
    return plan.jobs[0].prompt


def _spelled(engine: Engine, tokens: Sequence[int]) -> list[str]:
    return [engine.text.detokenize([token]) for token in tokens]


def _require_model(request: web.Request, name: str | None) -> str:
    """The model's name; one that is not given is the server's own."""
    names = request.app[CONFIG].names
    return names[0] if name is None else translate.require_model(name, names)


async def _in_thread(request: web.Request, work: Callable[..., T], *arguments: Any) -> T:
    """What takes a while for a long text, off the event loop."""
    return await asyncio.get_running_loop().run_in_executor(request.app[PROMPTS], functools.partial(work, *arguments))
