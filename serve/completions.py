"""`POST /v1/completions`: goes on from raw text, without the chat template.

Every prompt gives `n` choices, each a job with a place of its own. They are worked on together and told in their order:
prompt by prompt, choice by choice.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
import uuid
from collections.abc import Sequence
from typing import Any

import msgspec
from aiohttp import web

from serve import bodies
from serve.access import ID, LOG
from serve.alignment import Alignment
from serve.choice import PendingChoice
from serve.completion_schema import NEUTRAL, Completion, CompletionChoice, CompletionRequest
from serve.config import ServeConfig
from serve.engine import Call, Engine, Job, Piece, PlainText, PromptError, PromptLengthError
from serve.errors import InvalidRequestError, TooLongError
from serve.handlers import CONFIG, ENGINE, PROMPTS, SEEDS, WORKER
from serve.logprobs import CompletionTokens, tokens_of
from serve.reply import Reply, total
from serve.responses import FinishReason, PromptDetails, Usage
from serve.schema import HARMLESS
from serve.sse import event_stream
from serve.translate import nth_seed, require_model, sampling


async def completions(request: web.Request) -> web.StreamResponse:
    """`POST /v1/completions`, whole or streamed."""
    app, config = request.app, request.app[CONFIG]
    wanted = bodies.decode(await bodies.read(request), CompletionRequest, harmless=HARMLESS, neutral=NEUTRAL)
    require_model(wanted.model, config.names)
    if wanted.stream_options is not None and not wanted.stream:
        raise InvalidRequestError("`stream_options` is only for `stream: true`", param="stream_options")
    prompts = _prompts(wanted)
    seed = app[SEEDS].getrandbits(31) if wanted.seed is None else wanted.seed
    with contextlib.ExitStack() as places:
        count = _count(prompts, wanted, app[WORKER].most)
        runs = [places.enter_context(app[WORKER].place(request[ID])) for _ in range(count)]
        in_thread = asyncio.get_running_loop().run_in_executor  # long prompts take a while
        jobs = await runs[0].prepare(in_thread(app[PROMPTS], _jobs, wanted, prompts, app[ENGINE], config, seed))
        choices = []
        for index, (job, run) in enumerate(zip(jobs, runs, strict=True)):
            reply = _reply(wanted, app[ENGINE].text)
            choices.append(PendingChoice(index, job, run, reply))
            app[WORKER].submit(run, job)
        try:
            return await (_stream if wanted.stream else _whole)(request, wanted, choices)
        finally:
            usage = _usage(choices, wanted.n)
            request[LOG] |= {"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens}


# ---------------------------------------------------------------- request to jobs
def _prompts(wanted: CompletionRequest) -> list[str | list[int]]:
    """One or several prompts: a list of numbers is one."""
    if isinstance(wanted.prompt, str):
        return [wanted.prompt]
    kinds = {type(item) for item in wanted.prompt}
    if len(kinds) > 1:
        raise InvalidRequestError("A list of prompts holds strings, or tokens, or lists of tokens", param="prompt")
    return [wanted.prompt] if kinds == {int} else wanted.prompt  # type: ignore[list-item,return-value]  # just found


def _count(prompts: Sequence[str | list[int]], wanted: CompletionRequest, most: int) -> int:
    """How many choices there are to be. There must be places for them: else no retry could ever succeed."""
    count = len(prompts) * wanted.n
    if count > most:
        raise InvalidRequestError(
            f"{len(prompts)} prompts with n={wanted.n} ask for {count} replies; this server does {most} at a time",
            param="prompt" if len(prompts) > most else "n",
        )
    return count


def _jobs(
    wanted: CompletionRequest, prompts: Sequence[str | list[int]], engine: Engine, config: ServeConfig, seed: int
) -> list[Job]:
    """A job for every choice. Takes as long as tokenizing does; safe on any thread."""
    jobs = []
    for index, given in enumerate(prompts):
        prompt = _prompt(given, engine, "prompt" if len(prompts) == 1 else f"prompt[{index}]")
        most = min(wanted.max_tokens or config.default_max_tokens, engine.room(len(prompt)))
        job = Job(
            prompt=prompt,
            max_new_tokens=most,
            seed=seed,
            temperature=wanted.temperature,
            sampling=sampling(wanted.diffusion, engine.sampling),
            top_k=max(wanted.top_k, 0),
            top_p=wanted.top_p,
            logprobs=wanted.logprobs,
        )
        jobs += [dataclasses.replace(job, seed=nth_seed(seed, choice)) for choice in range(wanted.n)]
    return jobs


def _prompt(given: str | list[int], engine: Engine, where: str) -> tuple[int, ...]:
    try:
        prompt = engine.text.prompt(given)
    except PromptLengthError as error:
        raise TooLongError("The prompt takes", f"at least {error.least}", engine.max_model_len, where) from None
    except PromptError as error:
        raise InvalidRequestError(f"The prompt cannot be read: {error}", param=where, code="invalid_value") from None
    if engine.room(len(prompt)) < 1:
        raise TooLongError("The prompt takes", str(len(prompt)), engine.max_model_len, where)
    return prompt


def _stops(wanted: CompletionRequest) -> tuple[str, ...]:
    return (wanted.stop,) if isinstance(wanted.stop, str) else tuple(wanted.stop or ())


# ---------------------------------------------------------------- choices to answer
async def _whole(
    request: web.Request, wanted: CompletionRequest, choices: Sequence[PendingChoice]
) -> web.StreamResponse:
    answers = []
    for choice in choices:
        pieces = await choice.whole()
        answers.append(_part(choice, pieces, _tokens(request, wanted), choice.reply.finish_reason))
    return bodies.answer(Completion(choices=answers, usage=_usage(choices, wanted.n), **_shared(wanted)))


async def _stream(
    request: web.Request, wanted: CompletionRequest, choices: Sequence[PendingChoice]
) -> web.StreamResponse:
    """One choice after the other; a chunk per canvas."""
    shared = _shared(wanted)
    with_usage = bool(wanted.stream_options and wanted.stream_options.include_usage)
    none: dict[str, Any] = {"usage": None} if with_usage else {}
    async with event_stream(request) as stream:
        for choice in choices:
            tokens = _tokens(request, wanted)
            async with contextlib.aclosing(choice.grow(request.app[CONFIG].heartbeat_seconds)) as growth:
                async for pieces in growth:
                    assert isinstance(pieces, list), "no job here asks for drafts"
                    await stream.send(Completion(choices=[_part(choice, pieces, tokens)], **shared, **none))
            last = CompletionChoice(index=choice.index, text="", finish_reason=choice.reply.finish_reason)
            await stream.send(Completion(choices=[last], **shared, **none))
        if with_usage:
            await stream.send(Completion(choices=[], usage=_usage(choices, wanted.n), **shared))
    return stream.response


def _reply(wanted: CompletionRequest, text: PlainText) -> Reply:
    alignment = None if wanted.logprobs is None else Alignment(text)
    return Reply(text.parser(), _stops(wanted), include_reasoning=True, alignment=alignment)


def _tokens(request: web.Request, wanted: CompletionRequest) -> CompletionTokens | None:
    return None if wanted.logprobs is None else CompletionTokens(request.app[ENGINE].text)


def _part(
    choice: PendingChoice,
    pieces: Sequence[Piece | Call],
    tokens: CompletionTokens | None,
    finish_reason: FinishReason | None = None,
) -> CompletionChoice:
    """A choice, whole or as far as these pieces go."""
    return CompletionChoice(
        index=choice.index,
        text="".join(piece.text for piece in pieces if isinstance(piece, Piece)),
        logprobs=tokens.part(tokens_of(pieces)) if tokens else None,
        finish_reason=finish_reason,
    )


def _shared(wanted: CompletionRequest) -> dict[str, Any]:
    return {"id": f"cmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": wanted.model}


def _usage(choices: Sequence[PendingChoice], n: int) -> Usage:
    """The counts of all choices together; a prompt counts once, however many choices it has."""
    each = [choice.reply.usage(choice.job) for choice in choices]
    usage, prompts = total(each), each[::n]
    prompt_tokens = sum(first.prompt_tokens for first in prompts)
    return msgspec.structs.replace(
        usage,
        prompt_tokens=prompt_tokens,
        total_tokens=prompt_tokens + usage.completion_tokens,
        prompt_tokens_details=PromptDetails(
            cached_tokens=sum(first.prompt_tokens_details.cached_tokens for first in prompts)
        ),
    )
