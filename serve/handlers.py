"""What each endpoint does. A chat request is decoded, translated, generated and encoded."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from aiohttp import web

from serve import bodies, encode, schema, translate
from serve.access import ID, LOG
from serve.alignment import Alignment
from serve.choice import Growth, PendingChoice
from serve.config import ServeConfig
from serve.engine import Engine, Job, PlainText
from serve.logprobs import of_chat, tokens_of
from serve.media_memory import MediaMemory, Share
from serve.media_parts import MediaReader
from serve.reply import Preview, Reply, total
from serve.responses import ChatChunk, ChatCompletion, Choice, Health, ModelCard, ModelList, Usage
from serve.schema import ChatRequest
from serve.sse import event_stream
from serve.worker import Worker

CONFIG = web.AppKey("config", ServeConfig)
ENGINE = web.AppKey("engine", Engine)  # type: ignore[type-abstract]  # the key only needs a type
WORKER = web.AppKey("worker", Worker)
PROMPTS = web.AppKey("prompts", ThreadPoolExecutor)
MEDIA = web.AppKey("media", MediaReader)
MEDIA_MEMORY = web.AppKey("media_memory", MediaMemory)
SEEDS = web.AppKey("seeds", random.Random)
CREATED = web.AppKey("created", int)


async def chat_completions(request: web.Request) -> web.StreamResponse:
    """`POST /v1/chat/completions`, whole or streamed."""
    app = request.app
    wanted = schema.decode(await bodies.read(request))
    outline = translate.outline(wanted, app[ENGINE], app[CONFIG])
    seed = app[SEEDS].getrandbits(31) if wanted.seed is None else wanted.seed
    name, answer = wanted.model, _stream if wanted.stream else _whole
    with contextlib.ExitStack() as places:
        runs = [places.enter_context(app[WORKER].place(request[ID])) for _ in range(wanted.n)]
        share = places.enter_context(app[MEDIA_MEMORY].share())
        plan = await runs[0].prepare(asyncio.ensure_future(_plan(app, wanted, outline, seed, share)))
        del wanted, outline  # they hold the text of pictures, which nobody needs while the reply is made
        choices = [PendingChoice(index, plan.jobs[index], run, _reply(app, plan)) for index, run in enumerate(runs)]
        for choice in choices:
            app[WORKER].submit(choice.run, choice.job)
        try:
            return await answer(request, name, plan, choices)
        finally:
            usage = _usage(choices)
            request[LOG] |= {"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens}


async def models(request: web.Request) -> web.Response:
    """`GET /v1/models`"""
    return bodies.answer(ModelList(data=[_card(request.app, name) for name in request.app[CONFIG].names]))


async def model(request: web.Request) -> web.Response:
    """`GET /v1/models/{id}`; an id may contain slashes."""
    return bodies.answer(
        _card(request.app, translate.require_model(request.match_info["id"], request.app[CONFIG].names))
    )


async def live(request: web.Request) -> web.Response:
    """`GET /v1/health/live`: the process answers."""
    return bodies.answer(Health(message="Service is live."))


async def ready(request: web.Request) -> web.Response:
    """`GET /v1/health/ready` and `GET /health`: requests are answered without waiting for a compilation."""
    if request.app[WORKER].state == "ready":
        return bodies.answer(Health(message="Service is ready."))
    return bodies.answer(Health(message=f"Service is not ready: {request.app[WORKER].state}."), status=503)


# ---------------------------------------------------------------- request to choices
async def _plan(
    app: web.Application, wanted: ChatRequest, outline: translate.Outline, seed: int, share: Share
) -> translate.Plan:
    media = await app[MEDIA].read(outline.conversation.media, share)
    in_thread = asyncio.get_running_loop().run_in_executor  # long prompts take a while
    return await in_thread(app[PROMPTS], translate.plan, wanted, outline, media, app[ENGINE], app[CONFIG], seed)


def _reply(app: web.Application, plan: translate.Plan) -> Reply:
    text = _logprobs_of(app, plan)
    return Reply(
        app[ENGINE].parser(plan.jobs[0].prompt),
        plan.stops,
        include_reasoning=plan.include_reasoning,
        most_calls=plan.most_calls,
        called=plan.called,
        alignment=Alignment(text) if text else None,
    )


def _logprobs_of(app: web.Application, plan: translate.Plan) -> PlainText | None:
    """What spells tokens, where their log-probabilities are asked for."""
    return None if plan.jobs[0].logprobs is None else app[ENGINE].text


def _usage(choices: Sequence[PendingChoice]) -> Usage:
    return total([choice.reply.usage(choice.job) for choice in choices])


# ---------------------------------------------------------------- choices to answer
async def _whole(
    request: web.Request, name: str, plan: translate.Plan, choices: Sequence[PendingChoice]
) -> web.StreamResponse:
    answers, text = [], _logprobs_of(request.app, plan)
    for choice in choices:
        pieces = await choice.whole()
        reason = choice.reply.finish_reason or "stop"
        logprobs = of_chat(tokens_of(pieces), text) if text else None
        message = encode.message(pieces)
        answers.append(Choice(index=choice.index, message=message, logprobs=logprobs, finish_reason=reason))
    created = int(time.time())
    return bodies.answer(
        ChatCompletion(id=encode.completion_id(), created=created, model=name, choices=answers, usage=_usage(choices))
    )


async def _stream(
    request: web.Request, name: str, plan: translate.Plan, choices: Sequence[PendingChoice]
) -> web.StreamResponse:
    """The role chunks go out at once, then one choice after the other."""
    chunks = encode.Chunks(name, with_usage=plan.include_usage, logprobs_of=_logprobs_of(request.app, plan))
    chunked = [chunks.choice(choice.index) for choice in choices]
    async with event_stream(request) as stream:
        for of_choice in chunked:
            await stream.send(of_choice.opening())
        for choice, of_choice in zip(choices, chunked, strict=True):
            async with contextlib.aclosing(choice.grow(request.app[CONFIG].heartbeat_seconds)) as growth:
                async for grown in growth:
                    for chunk in _chunked(of_choice, grown, choice.job, request.app[ENGINE]):
                        await stream.send(chunk)
            await stream.send(of_choice.closing(choice.reply.finish_reason))
        if plan.include_usage:
            await stream.send(chunks.usage(_usage(choices)))
    return stream.response


def _chunked(chunks: encode.ChunksOfChoice, grown: Growth, job: Job, engine: Engine) -> list[ChatChunk]:
    if isinstance(grown, Preview):
        return [chunks.draft(grown, (job.sampling or engine.sampling).max_steps)]
    return chunks.growth(grown)


def _card(app: web.Application, name: str) -> ModelCard:
    return ModelCard(
        id=name,
        created=app[CREATED],
        root=app[CONFIG].checkpoint.resolve().name,
        max_model_len=app[ENGINE].max_model_len,
    )
