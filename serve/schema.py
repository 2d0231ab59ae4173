"""The wire, inward: the chat request as types, all but its messages; `bodies.py` says how bytes become one."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from serve import bodies
from serve.messages import FunctionName, Message

HARMLESS = frozenset(
    {
        "metadata",
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "store",
        "user",
    }
)
"""Fields for the caller's own bookkeeping, and hints that no reply of this server depends on. README lists them."""

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "ignore_eos": (False,),
    "logit_bias": ({},),
    "min_p": (0,),
    "min_tokens": (0,),
    "modalities": (["text"],),
    "prediction": (),
    "presence_penalty": (0,),
    "reasoning": ({},),
    "repetition_penalty": (1,),
    "service_tier": ("auto", "default"),
    "stop_token_ids": ([],),
    "verbosity": ("medium",),
    "web_search_options": (),
}
"""Fields this server knows but does not do yet, each with the values that ask for nothing (besides null)."""

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
StopString = Annotated[str, Meta(min_length=1, max_length=1024)]
TopP = Annotated[float, Meta(ge=0, le=1)]
TopK = Annotated[int, Meta(ge=-1, le=2**31 - 1)]
"""How many of the likeliest tokens may be drawn; -1 and 0 are off."""
MostLogprobs = Annotated[int, Meta(ge=0, le=20)]
Seed = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]


class FunctionTool(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A function that the model may call. `parameters` is a JSON schema of an object.

    Arguments are always JSON. They are held to the schema where the function is `strict`, where `tool_choice` asks for
    a call, and beside a `response_format`.
    """

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Struct, frozen=True, forbid_unknown_fields=True):
    type: Literal["function"]
    function: FunctionTool


class Diffusion(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How canvases are denoised, where it is to differ from the checkpoint's generation_config.json.

    `t_max` and `t_min` are the temperatures of the first and, nearly, the last step; `temperature` scales both.
    """

    max_steps: Annotated[int, Meta(ge=1, le=1000)] | None = None
    entropy_bound: Annotated[float, Meta(gt=0, le=100)] | None = None
    confidence_threshold: Annotated[float, Meta(gt=0, le=100)] | None = None
    t_min: Annotated[float, Meta(ge=0, le=10)] | None = None
    t_max: Annotated[float, Meta(ge=1e-3, le=10)] | None = None


class ChatDiffusion(Diffusion, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The same, and whether a stream shows its canvases while they are denoised: after `every` so many steps."""

    stream_drafts: bool | None = None
    every: Annotated[int, Meta(ge=1, le=1000)] | None = None


class TemplateKwargs(Struct, frozen=True, forbid_unknown_fields=True):
    """The chat template's own switch, under the two names in use."""

    thinking: bool | None = None
    enable_thinking: bool | None = None


class JsonSchema(Struct, frozen=True, forbid_unknown_fields=True):
    """`schema` is held to as a whole, whatever `strict` says; `name` and `description` change nothing."""

    name: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None
    description: str | None = None


class ResponseFormat(Struct, frozen=True, forbid_unknown_fields=True):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


Pattern = Annotated[str, Meta(min_length=1, max_length=10_000)]
Choice = Annotated[str, Meta(min_length=1, max_length=10_000)]


class StructuredOutputs(Struct, frozen=True, forbid_unknown_fields=True):
    """One of: a JSON schema, a regular expression (Rust's, without looking around), or texts to choose from."""

    json: dict[str, Any] | None = None
    regex: Pattern | None = None
    choice: Annotated[list[Choice], Meta(min_length=1, max_length=1000)] | None = None


class NamedFunction(Struct, frozen=True, forbid_unknown_fields=True):
    name: FunctionName


class NamedTool(Struct, frozen=True, forbid_unknown_fields=True):
    """The one function that must be called."""

    type: Literal["function"]
    function: NamedFunction


class StreamOptions(Struct, frozen=True, forbid_unknown_fields=True):
    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class ChatRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`POST /v1/chat/completions`, as far as this server does it. An absent field is null."""

    model: str
    messages: Annotated[list[Message], Meta(min_length=1)]
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Meta(ge=1)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] = 1.0
    top_p: TopP = 1.0
    top_k: TopK = 0
    logprobs: bool = False
    top_logprobs: MostLogprobs = 0
    seed: Seed | None = None
    n: Annotated[int, Meta(ge=1, le=8)] = 1
    stop: StopString | Annotated[list[StopString], Meta(max_length=4)] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    chat_template_kwargs: TemplateKwargs | None = None
    reasoning_effort: Effort | None = None
    include_reasoning: bool = True
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool = "auto"
    parallel_tool_calls: bool = True
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    diffusion: ChatDiffusion | None = None


def decode(body: bytes) -> ChatRequest:
    """Reads a request body.

    Raises:
        InvalidRequestError: the body is not JSON, or a field has the wrong type, is unknown, or asks for what
            is not done yet.
    """
    return bodies.decode(body, ChatRequest, harmless=HARMLESS, neutral=NEUTRAL)
