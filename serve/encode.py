"""Pieces of a reply to OpenAI's shapes: one message, or deltas in chunks."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from serve.engine import Call, Piece, PlainText
from serve.logprobs import of_chat
from serve.reply import Preview
from serve.responses import (
    ChatChunk,
    ChoiceLogprobs,
    ChunkChoice,
    Delta,
    DraftFrame,
    FinishReason,
    Function,
    FunctionDelta,
    ReplyMessage,
    ToolCall,
    ToolCallDelta,
    Usage,
)


def completion_id() -> str:
    """A fresh id of a reply."""
    return f"chatcmpl-{uuid.uuid4().hex}"


def message(pieces: Sequence[Piece | Call]) -> ReplyMessage:
    """A whole reply."""

    def text(kind: str) -> str:
        return "".join(piece.text for piece in pieces if isinstance(piece, Piece) and piece.kind == kind)

    calls = [
        ToolCall(id=_call_id(), function=Function(piece.name, piece.arguments))
        for piece in pieces
        if isinstance(piece, Call)
    ]
    content, reasoning = text("content"), text("reasoning") or None
    if not calls:
        return ReplyMessage(content=content, reasoning=reasoning, reasoning_content=reasoning)
    return ReplyMessage(content=content or None, reasoning=reasoning, reasoning_content=reasoning, tool_calls=calls)


class Chunks:
    """The chunks of one streamed answer: same id, time and model. With usage, every chunk has the field."""

    def __init__(self, name: str, *, with_usage: bool, logprobs_of: PlainText | None = None) -> None:
        """`logprobs_of`: what spells tokens, where their log-probabilities are asked for."""
        self.logprobs_of = logprobs_of
        self._shared: dict[str, Any] = {"id": completion_id(), "created": int(time.time()), "model": name}
        self._none: dict[str, Any] = {"usage": None} if with_usage else {}

    def choice(self, index: int) -> ChunksOfChoice:
        """The chunks of one choice."""
        return ChunksOfChoice(self, index)

    def usage(self, usage: Usage) -> ChatChunk:
        """The last chunk, of all choices."""
        return ChatChunk(choices=[], usage=usage, **self._shared)

    def of(self, choice: ChunkChoice) -> ChatChunk:
        """A chunk around a choice."""
        return ChatChunk(choices=[choice], **self._shared, **self._none)


class ChunksOfChoice:
    """The chunks of one choice, in their order: `opening`, `growth` again and again, `closing`."""

    def __init__(self, chunks: Chunks, index: int) -> None:
        self._chunks = chunks
        self._index = index
        self._calls = 0

    def opening(self) -> ChatChunk:
        """The chunk that says who speaks."""
        return self._chunk(Delta(role="assistant", content=""))

    def growth(self, pieces: Iterable[Piece | Call]) -> list[ChatChunk]:
        """What pieces add; an empty chunk for nothing, so that clients see a sign of life."""
        return [chunk for piece in pieces for chunk in self._growth(piece)] or [self._chunk(Delta())]

    def draft(self, preview: Preview, max_steps: int) -> ChatChunk:
        """A chunk whose delta is empty: what the canvas under way says now, beside it."""
        said = message(preview.pieces)
        calls = [f"{call.function.name}({call.function.arguments})" for call in said.tool_calls or ()]
        frame = DraftFrame(
            canvas=preview.canvas,
            step=preview.step,
            max_steps=max_steps,
            reasoning=said.reasoning,
            text="\n".join([*([said.content] if said.content else []), *calls]),
        )
        return msgspec.structs.replace(self._chunk(Delta()), diffusion=frame)

    def closing(self, reason: FinishReason | None) -> ChatChunk:
        """The chunk that says why the choice is finished."""
        return self._chunk(Delta(), reason)

    def _chunk(
        self, delta: Delta, reason: FinishReason | None = None, logprobs: ChoiceLogprobs | None = None
    ) -> ChatChunk:
        return self._chunks.of(ChunkChoice(index=self._index, delta=delta, logprobs=logprobs, finish_reason=reason))

    def _growth(self, piece: Piece | Call) -> list[ChatChunk]:
        if isinstance(piece, Call):
            return [self._chunk(delta) for delta in self._call_deltas(piece)]
        if piece.kind == "reasoning":
            return [self._chunk(Delta(reasoning=piece.text, reasoning_content=piece.text))]
        text = self._chunks.logprobs_of
        logprobs = of_chat(piece.tokens, text) if text else None
        return [self._chunk(Delta(content=piece.text), logprobs=logprobs)]

    def _call_deltas(self, call: Call) -> list[Delta]:
        index, self._calls = self._calls, self._calls + 1
        who = FunctionDelta(name=call.name, arguments="")
        parts = (
            ToolCallDelta(index=index, id=_call_id(), type="function", function=who),
            ToolCallDelta(index=index, function=FunctionDelta(arguments=call.arguments)),
        )
        return [Delta(tool_calls=[part]) for part in parts]


def _call_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"
