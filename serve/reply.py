"""From canvases to what the client reads: text pieces, stop strings, counts and the reason to finish.

The same object serves whole and streamed replies, so both give the same text, and however the tokens are cut into
canvases the joined text is the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Literal

from serve.engine import Canvas, Job, Parser, Piece
from serve.responses import CompletionDetails, DiffusionUsage, Usage


class StopCutter:
    """Lets text through up to the stop string that is complete first; holds back what may still become one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.hit = False

    def push(self, text: str) -> str:
        """The text that is certainly before any stop string."""
        text, self._held = self._held + text, ""
        ends = [(start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0]
        if ends:
            self.hit = True
            return text[: min(ends)[1]]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        ready, self._held = text[: len(text) - keep], text[len(text) - keep :]
        return ready

    def finish(self) -> str:
        """What was held back: no stop string came of it."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """How much of `text`'s end is the beginning of `stop`."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)


class Reply:
    """One reply as it grows.

    `completion_tokens` counts every token up to and including the end token, or the token that completes a stop
    string; either finishes the reply. Stop strings are looked for in the answer only: reasoning that mentions one
    goes on.
    """

    def __init__(self, parser: Parser, stops: Sequence[str], *, include_reasoning: bool) -> None:
        self.canvases = 0
        self.steps = 0
        self.finish_reason: Literal["stop", "length"] | None = None
        self._parser = parser
        self._stops = tuple(stops)
        self._cutter = StopCutter(stops)
        self._include_reasoning = include_reasoning

    @property
    def completion_tokens(self) -> int:
        """Tokens that belong to the reply, so far."""
        return self._parser.tokens

    def push(self, canvas: Canvas) -> list[Piece]:
        """The text one canvas adds. An end in it finishes the reply, whether or not the engine knows that end."""
        self.canvases += 1
        self.steps += canvas.steps
        pieces: list[Piece] = []
        # One by one where a stop string may end the reply between two tokens, so that the count is exact.
        for tokens in ((token,) for token in canvas.tokens) if self._stops else (canvas.tokens,):
            pieces += self._pass(self._parser.push(tokens))
            if self._cutter.hit or self._parser.ended:
                return _joined([*pieces, *self.finish("stop")])
        return _joined(pieces)

    def finish(self, reason: Literal["stop", "length"]) -> list[Piece]:
        """The text that was held back until the end was known. A stop string in it counts before `reason`."""
        pieces = [] if self._cutter.hit else self._pass(self._parser.finish())
        self.finish_reason = "stop" if self._cutter.hit else reason
        return _joined([*pieces, Piece("content", self._cutter.finish())])

    def usage(self, job: Job) -> Usage:
        """The counts so far, as the wire has them."""
        return Usage(
            prompt_tokens=len(job.prompt),
            completion_tokens=self.completion_tokens,
            total_tokens=len(job.prompt) + self.completion_tokens,
            completion_tokens_details=CompletionDetails(reasoning_tokens=self._parser.reasoning_tokens),
            diffusion=DiffusionUsage(canvases=self.canvases, steps=self.steps, seed=job.seed),
        )

    def _pass(self, pieces: Iterable[Piece]) -> list[Piece]:
        passed = []
        for piece in pieces:
            if self._cutter.hit:
                break
            if piece.kind == "content":
                passed.append(Piece("content", self._cutter.push(piece.text)))
            elif self._include_reasoning:
                passed.append(piece)
        return passed


def _joined(pieces: Iterable[Piece]) -> list[Piece]:
    """Neighbouring pieces of one kind made one, empty ones left out."""
    full = (piece for piece in pieces if piece.text)
    return [
        Piece(kind, "".join(piece.text for piece in group)) for kind, group in groupby(full, lambda piece: piece.kind)
    ]
