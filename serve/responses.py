"""The wire, outward: every body this server answers with, in OpenAI's shapes.

What is beyond OpenAI's: `reasoning` and `reasoning_content` (the same text; clients read one or the other) and
`usage.diffusion`.
"""

from __future__ import annotations

from typing import Literal

from msgspec import UNSET, Struct, UnsetType

FinishReason = Literal["stop", "length", "tool_calls"]


class ErrorBody(Struct, frozen=True, kw_only=True):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(Struct, frozen=True):
    error: ErrorBody


class PromptDetails(Struct, frozen=True):
    """`cached_tokens`: tokens of the prompt that did not have to be read again for this reply."""

    cached_tokens: int


class CompletionDetails(Struct, frozen=True):
    reasoning_tokens: int


class DiffusionUsage(Struct, frozen=True, kw_only=True):
    """Canvases committed, denoising steps over all of them, and the seed that gives this reply again."""

    canvases: int
    steps: int
    seed: int


class Usage(Struct, frozen=True, kw_only=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails
    diffusion: DiffusionUsage


class Function(Struct, frozen=True):
    """`arguments` is the text of a JSON object."""

    name: str
    arguments: str


class ToolCall(Struct, frozen=True, kw_only=True):
    id: str
    type: Literal["function"] = "function"
    function: Function


class ReplyMessage(Struct, frozen=True, kw_only=True):
    """`content` is null where a reply is nothing but calls."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    reasoning: str | None
    reasoning_content: str | None
    tool_calls: list[ToolCall] | UnsetType = UNSET


class TopLogprob(Struct, frozen=True, kw_only=True):
    """`token` is text; a part of a character is written as `\\xe2\\x82`, byte by byte."""

    token: str
    logprob: float
    bytes: list[int]


class ContentLogprob(Struct, frozen=True, kw_only=True):
    """A token of `content`, as far as it stands in it: joined, the `bytes` of all are what the model wrote there."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(Struct, frozen=True, kw_only=True):
    content: list[ContentLogprob]
    refusal: None = None


class Choice(Struct, frozen=True, kw_only=True):
    index: int = 0
    message: ReplyMessage
    logprobs: ChoiceLogprobs | None = None
    finish_reason: FinishReason


class ChatCompletion(Struct, frozen=True, kw_only=True):
    id: str
    object: str = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage


class FunctionDelta(Struct, frozen=True, kw_only=True, omit_defaults=True):
    name: str | None = None
    arguments: str


class ToolCallDelta(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A call comes in two: who is called, then with what. One call is complete before the next `index` begins."""

    index: int
    id: str | None = None
    type: str | None = None
    function: FunctionDelta


class Delta(Struct, frozen=True, kw_only=True, omit_defaults=True):
    role: str | None = None
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class ChunkChoice(Struct, frozen=True, kw_only=True):
    index: int = 0
    delta: Delta
    logprobs: ChoiceLogprobs | None = None
    finish_reason: FinishReason | None = None


class DraftFrame(Struct, frozen=True, kw_only=True):
    """The canvas under way, where `diffusion.stream_drafts` asks for it: what the reply would go on with, ended here.

    `canvas` counts from 0, `step` from 1. Nothing of a draft is final; what is comes as `content`.
    """

    type: Literal["draft"] = "draft"
    canvas: int
    step: int
    max_steps: int
    reasoning: str | None
    text: str


class ChatChunk(Struct, frozen=True, kw_only=True):
    id: str
    object: str = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | UnsetType | None = UNSET
    diffusion: DraftFrame | UnsetType = UNSET


class ModelCard(Struct, frozen=True, kw_only=True):
    """`root` is the name of the checkpoint behind the id."""

    id: str
    object: str = "model"
    created: int
    owned_by: str = "dgemma"
    root: str
    parent: None = None
    max_model_len: int


class ModelList(Struct, frozen=True, kw_only=True):
    object: str = "list"
    data: list[ModelCard]


class Health(Struct, frozen=True, kw_only=True):
    object: str = "health.response"
    message: str
