"""A job in the library's terms, and the library's events in the server's."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import cast

import dgemma_jax
from dgemma_jax.engine import Draft as DraftMade
from dgemma_jax.engine import Event as EngineEvent
from dgemma_jax.engine import Failed as JobFailed
from dgemma_jax.engine import Prefilled as PromptRead
from dgemma_jax.grammar import Grammar, GrammarError
from dgemma_jax.media.patches import Patches
from dgemma_jax.prompt import answer_grammar
from serve.engine import (
    AnswerFormat,
    Canvas,
    Draft,
    Event,
    Failed,
    Finished,
    FormatError,
    Job,
    Prefilled,
    Sampling,
    TokenLogprob,
)

COLDEST = 1e-3
"""What temperature 0 means: this fraction of the checkpoint's temperatures. Exact zero would divide by zero."""


def request_of(job: Job, generation: dgemma_jax.GenerationConfig) -> dgemma_jax.Request:
    """What the engine is to do; `generation` is the checkpoint's own."""
    return dgemma_jax.Request(
        tokens=job.prompt,
        max_new_tokens=job.max_new_tokens,
        seed=job.seed,
        generation=tempered(sampled(generation, job.sampling), job.temperature),
        options=dgemma_jax.SamplingOptions(top_k=job.top_k, top_p=job.top_p, logprobs=job.logprobs),
        patches=cast("Sequence[Patches] | None", job.images),
        draft_every=job.draft_every,
        grammar=cast("Grammar | None", job.grammar),
    )


def lark_of(format: AnswerFormat, thought: answer_grammar.Thought) -> str:
    """The grammar of answers of the format. Raises ValueError for one that cannot be written."""
    content = None
    if format.schema is not None:
        content = answer_grammar.json_schema(format.schema)
    elif format.regex is not None:
        content = answer_grammar.regex(format.regex)
    elif format.choice:
        content = answer_grammar.choice(format.choice)
    elif format.text:
        content = answer_grammar.ANY_TEXT
    calls = answer_grammar.calls(format.functions, format.most_calls) if format.functions else None
    return answer_grammar.whole(content, calls, thought)


def event_of(event: EngineEvent) -> Event:
    """What the engine told of a job."""
    match event:
        case PromptRead(cached_tokens=cached):
            return Prefilled(cached)
        case DraftMade(tokens, step):
            return Draft(tokens, step)
        case dgemma_jax.CanvasCommitted(tokens, steps, logprobs):
            scored = tuple(TokenLogprob(token.logprob, token.likeliest) for token in logprobs or ())
            return Canvas(tokens, steps, scored if logprobs is not None else None)
        case dgemma_jax.Finished(reason):
            return Finished(reason)
        case JobFailed(GrammarError() as error):
            return Failed(FormatError(str(error)))
        case JobFailed(error):
            return Failed(error)
    raise AssertionError(f"an event of no kind: {event!r}")


def sampled(generation: dgemma_jax.GenerationConfig, sampling: Sampling | None) -> dgemma_jax.GenerationConfig:
    """The sampler's settings with a request's own in place of the checkpoint's."""
    if sampling is None:
        return generation
    fields = dataclasses.asdict(sampling)
    return dataclasses.replace(generation, max_denoising_steps=fields.pop("max_steps"), **fields)


def tempered(generation: dgemma_jax.GenerationConfig, temperature: float) -> dgemma_jax.GenerationConfig:
    """The sampler's settings at a request's `temperature`, which scales both ends of the temperature schedule.

    1 is as the checkpoint says. Towards 0 the canvas is explored more and more greedily; 0 itself is `COLDEST`, where
    tokens are drawn from what is practically the argmax. Every canvas starts from random tokens at any temperature,
    so only the seed makes a reply repeatable.
    """
    scale = max(temperature, COLDEST)
    return dataclasses.replace(generation, t_min=generation.t_min * scale, t_max=generation.t_max * scale)
