"""The wire, outward: every body this server answers with, in OpenAI's shapes.

What is beyond OpenAI's: `reasoning` and `reasoning_content` (the same text; clients read one or the other) and
`usage.diffusion`.
"""

from __future__ import annotations

from msgspec import UNSET, Struct, UnsetType


class ErrorBody(Struct, frozen=True, kw_only=True):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(Struct, frozen=True):
    error: ErrorBody


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
    completion_tokens_details: CompletionDetails
    diffusion: DiffusionUsage


class ReplyMessage(Struct, frozen=True, kw_only=True):
    role: str = "assistant"
    content: str
    reasoning: str | None
    reasoning_content: str | None


class Choice(Struct, frozen=True, kw_only=True):
    index: int = 0
    message: ReplyMessage
    logprobs: None = None
    finish_reason: str


class ChatCompletion(Struct, frozen=True, kw_only=True):
    id: str
    object: str = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage


class Delta(Struct, frozen=True, kw_only=True, omit_defaults=True):
    role: str | None = None
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None


class ChunkChoice(Struct, frozen=True, kw_only=True):
    index: int = 0
    delta: Delta
    logprobs: None = None
    finish_reason: str | None = None


class ChatChunk(Struct, frozen=True, kw_only=True):
    id: str
    object: str = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | UnsetType | None = UNSET


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
