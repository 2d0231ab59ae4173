"""The wire of `POST /v1/completions`: raw text in, raw text out, in OpenAI's older shapes."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import UNSET, Meta, Struct, UnsetType

from serve.responses import FinishReason, Usage
from serve.schema import NEUTRAL as CHAT_NEUTRAL
from serve.schema import Diffusion, MostLogprobs, Seed, StopString, StreamOptions, TopK, TopP

_SAMPLING = (
    "frequency_penalty",
    "ignore_eos",
    "logit_bias",
    "min_p",
    "min_tokens",
    "presence_penalty",
    "repetition_penalty",
    "service_tier",
    "stop_token_ids",
)
NEUTRAL: dict[str, tuple[Any, ...]] = {name: CHAT_NEUTRAL[name] for name in _SAMPLING if name in CHAT_NEUTRAL} | {
    "response_format": ({"type": "text"},),
    "structured_outputs": (),
    "add_special_tokens": (True,),
    "best_of": (1,),
    "echo": (False,),
    "include_stop_str_in_output": (False,),
    "length_penalty": (1,),
    "prompt_logprobs": (),
    "skip_special_tokens": (True,),
    "suffix": ("",),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
}
"""Fields this server knows but does not do, each with the values that ask for nothing (besides null)."""

Token = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Tokens = Annotated[list[Token], Meta(min_length=1)]
_ONE_KIND = {
    "anyOf": [
        {"items": {"type": "string"}},
        {"items": {"type": "integer", "minimum": 0}},
        {"items": {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}}},
    ]
}
Prompts = Annotated[list[str | Token | Tokens], Meta(min_length=1, extra_json_schema=_ONE_KIND)]


class CompletionRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A text to go on from, or several: strings, or the ids of tokens. An absent field is null."""

    model: str
    prompt: str | Prompts
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] = 1.0
    top_p: TopP = 1.0
    top_k: TopK = 0
    logprobs: MostLogprobs | None = None
    seed: Seed | None = None
    n: Annotated[int, Meta(ge=1, le=8)] = 1
    stop: StopString | Annotated[list[StopString], Meta(max_length=4)] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    diffusion: Diffusion | None = None


class CompletionLogprobs(Struct, frozen=True, kw_only=True):
    """Lists of one length, an item for each token of the text.

    `text_offset` counts characters from the beginning of the choice's text. `top_logprobs` has the likeliest tokens
    and always the token itself. A part of a character is written as `bytes:\\xe2\\x82`.
    """

    text_offset: list[int]
    token_logprobs: list[float]
    tokens: list[str]
    top_logprobs: list[dict[str, float]]


class CompletionChoice(Struct, frozen=True, kw_only=True):
    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: FinishReason | None


class Completion(Struct, frozen=True, kw_only=True):
    """A whole answer, or one chunk of a streamed one."""

    id: str
    object: str = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | UnsetType | None = UNSET
