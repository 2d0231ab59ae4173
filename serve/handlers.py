"""What each endpoint does. A chat request is decoded, translated, generated and encoded."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
import uuid
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
from aiohttp import web

from serve import schema, translate
from serve.access import ID, LOG
from serve.config import ServeConfig
from serve.engine import Canvas, Engine, Finished, Piece
from serve.errors import UnsupportedMediaTypeError, explain
from serve.reply import Reply
from serve.responses import (
    ChatChunk,
    ChatCompletion,
    Choice,
    ChunkChoice,
    Delta,
    Health,
    ModelCard,
    ModelList,
    ReplyMessage,
    Usage,
)
from serve.sse import EventStream
from serve.worker import Run, Worker

CONFIG = web.AppKey("config", ServeConfig)
ENGINE = web.AppKey("engine", Engine)  # type: ignore[type-abstract]  # the key only needs a type
WORKER = web.AppKey("worker", Worker)
PROMPTS = web.AppKey("prompts", ThreadPoolExecutor)
SEEDS = web.AppKey("seeds", random.Random)
CREATED = web.AppKey("created", int)


async def chat_completions(request: web.Request) -> web.StreamResponse:
    """`POST /v1/chat/completions`, whole or streamed."""
    app = request.app
    wanted = schema.decode(await _body(request))
    seed = app[SEEDS].getrandbits(31) if wanted.seed is None else wanted.seed
    with app[WORKER].place(request[ID]) as run:
        in_thread = asyncio.get_running_loop().run_in_executor  # long prompts take a while
        plan = await run.prepare(in_thread(app[PROMPTS], translate.plan, wanted, app[ENGINE], app[CONFIG], seed))
        reply = Reply(app[ENGINE].parser(plan.job.prompt), plan.stops, include_reasoning=plan.include_reasoning)
        app[WORKER].submit(run, plan.job)
        answer = _stream if wanted.stream else _whole
        try:
            return await answer(request, wanted.model, plan, reply, run)
        finally:
            usage = reply.usage(plan.job)
            request[LOG] |= {"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens}


async def models(request: web.Request) -> web.Response:
    """`GET /v1/models`"""
    return _json(ModelList(data=[_card(request.app, name) for name in request.app[CONFIG].names]))


async def model(request: web.Request) -> web.Response:
    """`GET /v1/models/{id}`; an id may contain slashes."""
    return _json(_card(request.app, translate.require_model(request.match_info["id"], request.app[CONFIG].names)))


async def live(request: web.Request) -> web.Response:
    """`GET /v1/health/live`: the process answers."""
    return _json(Health(message="Service is live."))


async def ready(request: web.Request) -> web.Response:
    """`GET /v1/health/ready` and `GET /health`: requests are answered without waiting for a compilation."""
    if request.app[WORKER].state == "ready":
        return _json(Health(message="Service is ready."))
    return _json(Health(message=f"Service is not ready: {request.app[WORKER].state}."), status=503)


# ---------------------------------------------------------------- one reply
async def _grow(run: Run, reply: Reply, silence: float | None) -> AsyncGenerator[list[Piece], None]:
    """The reply's text canvas by canvas; nothing after `silence` seconds without one. Ends when the reply does."""
    while reply.finish_reason is None:
        match await run.next(silence):
            case Canvas() as canvas:
                yield reply.push(canvas)
            case Finished(reason):
                if rest := reply.finish(reason):
                    yield rest
            case None:
                yield []


async def _whole(request: web.Request, name: str, plan: translate.Plan, reply: Reply, run: Run) -> web.StreamResponse:
    pieces = [piece async for pieces in _grow(run, reply, None) for piece in pieces]
    reasoning = "".join(piece.text for piece in pieces if piece.kind == "reasoning") or None
    content = "".join(piece.text for piece in pieces if piece.kind == "content")
    message = ReplyMessage(content=content, reasoning=reasoning, reasoning_content=reasoning)
    return _json(
        ChatCompletion(
            id=_completion_id(),
            created=int(time.time()),
            model=name,
            choices=[Choice(message=message, finish_reason=reply.finish_reason or "stop")],
            usage=reply.usage(plan.job),
        )
    )


async def _stream(request: web.Request, name: str, plan: translate.Plan, reply: Reply, run: Run) -> web.StreamResponse:
    """The role chunk goes out at once; what fails after it is an error frame."""
    chunks = _Chunks(name, with_usage=plan.include_usage)
    stream = await EventStream.open(request)
    try:
        await stream.send(chunks.delta(Delta(role="assistant", content="")))
        async with contextlib.aclosing(_grow(run, reply, request.app[CONFIG].heartbeat_seconds)) as growth:
            async for pieces in growth:
                for delta in [_delta(piece) for piece in pieces] or [Delta()]:
                    await stream.send(chunks.delta(delta))
        await stream.send(chunks.delta(Delta(), finish_reason=reply.finish_reason))
        if plan.include_usage:
            await stream.send(chunks.usage(reply.usage(plan.job)))
    except ConnectionError:
        raise
    except Exception as caught:
        await stream.fail(explain(caught, request))
    await stream.close()
    return stream.response


class _Chunks:
    """The chunks of one streamed reply: same id, time and model. With usage, every chunk has the field."""

    def __init__(self, name: str, *, with_usage: bool) -> None:
        self._shared: dict[str, Any] = {"id": _completion_id(), "created": int(time.time()), "model": name}
        self._none: dict[str, Any] = {"usage": None} if with_usage else {}

    def delta(self, delta: Delta, finish_reason: str | None = None) -> ChatChunk:
        return ChatChunk(choices=[ChunkChoice(delta=delta, finish_reason=finish_reason)], **self._shared, **self._none)

    def usage(self, usage: Usage) -> ChatChunk:
        return ChatChunk(choices=[], usage=usage, **self._shared)


def _delta(piece: Piece) -> Delta:
    if piece.kind == "reasoning":
        return Delta(reasoning=piece.text, reasoning_content=piece.text)
    return Delta(content=piece.text)


# ---------------------------------------------------------------- bodies
async def _body(request: web.Request) -> bytes:
    kind = request.content_type
    if "Content-Type" in request.headers and kind != "application/json" and not kind.endswith("+json"):
        raise UnsupportedMediaTypeError(f"The body must be JSON (Content-Type: application/json), found {kind}.")
    if (request.content_length or 0) > request.client_max_size:
        raise web.HTTPRequestEntityTooLarge(request.client_max_size, request.content_length or 0)
    return await request.read()


def _json(body: msgspec.Struct, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(body), status=status, content_type="application/json")


def _card(app: web.Application, name: str) -> ModelCard:
    return ModelCard(
        id=name,
        created=app[CREATED],
        root=app[CONFIG].checkpoint.resolve().name,
        max_model_len=app[ENGINE].max_model_len,
    )


def _completion_id() -> str:
    return f"chatcmpl-{uuid.uuid4().hex}"
