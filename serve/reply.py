"""From canvases to what the client reads: text, calls, stop strings, counts and the reason to finish.

The same object serves whole and streamed replies, so both give the same text, and however the tokens are cut into
canvases the joined text is the same.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

from serve.alignment import Alignment
from serve.engine import Call, Canvas, Draft, Job, Parser, Piece
from serve.responses import CompletionDetails, DiffusionUsage, FinishReason, PromptDetails, Usage


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


@dataclasses.dataclass(frozen=True)
class Preview:
    """What a reply would go on with if its canvas, counted from 0, were committed as it is after so many steps."""

    canvas: int
    step: int
    pieces: list[Piece | Call]


class Reply:
    """One reply as it grows.

    `completion_tokens` counts every token up to and including the end token, the token that completes a stop string,
    or the one that completes the last call allowed; each finishes the reply. Stop strings are looked for in the answer
    only: reasoning that mentions one goes on. `most_calls` is 0 where no tools are declared: what looks like a call is
    then text, and None where there may be any number; `called` is why a reply with calls finished. With an `alignment`
    the answer's pieces have their tokens.
    """

    def __init__(
        self,
        parser: Parser,
        stops: Sequence[str],
        *,
        include_reasoning: bool,
        most_calls: int | None = 0,
        called: FinishReason = "tool_calls",
        alignment: Alignment | None = None,
    ) -> None:
        self.cached_tokens = 0
        """Tokens of the prompt that did not have to be read; its reader says so."""
        self.canvases = 0
        self.steps = 0
        self.finish_reason: FinishReason | None = None
        self._parser = parser
        self._cutter = StopCutter(stops)
        self._include_reasoning = include_reasoning
        self._most_calls = most_calls
        self._called: FinishReason = called
        self._calls = 0
        self._alignment = alignment
        self._may_end_early = bool(stops) or bool(most_calls)

    @property
    def completion_tokens(self) -> int:
        """Tokens that belong to the reply, so far."""
        return self._parser.tokens

    def push(self, canvas: Canvas) -> list[Piece | Call]:
        """What one canvas adds. An end in it finishes the reply, whether or not the engine knows that end."""
        self.canvases += 1
        self.steps += canvas.steps
        pieces: list[Piece | Call] = []
        for part in self._read(canvas):
            pieces += self._pass(part)
            if self._is_over or self._parser.ended:
                return _joined([*pieces, *self.finish("stop")])
        return _joined(pieces)

    def preview(self, draft: Draft, room: int) -> Preview:
        """What the canvas under way would add, `room` of its tokens at most; the reply stays as it is."""
        ahead = copy.copy(self)
        ahead._parser, ahead._cutter = copy.deepcopy((self._parser, self._cutter))
        ahead._alignment = None  # a preview has no log-probabilities
        pieces = ahead.push(Canvas(draft.tokens[:room], draft.step))
        if ahead.finish_reason is None:
            pieces += ahead.finish("length")
        return Preview(self.canvases, draft.step, _joined(pieces))

    def finish(self, reason: Literal["stop", "length"]) -> list[Piece | Call]:
        """What was held back until the end was known. A stop string in it counts before `reason`."""
        pieces = [] if self._is_over else self._pass(self._parser.finish())
        ended = "stop" if self._is_over else reason
        self.finish_reason = self._called if self._calls and ended == "stop" else ended
        rest = self._shown(self._cutter.finish())
        if self._alignment:
            rest = dataclasses.replace(rest, tokens=rest.tokens + self._alignment.end())
        return _joined([*pieces, rest])

    def usage(self, job: Job) -> Usage:
        """The counts so far, as the wire has them."""
        return Usage(
            prompt_tokens=len(job.prompt),
            completion_tokens=self.completion_tokens,
            total_tokens=len(job.prompt) + self.completion_tokens,
            prompt_tokens_details=PromptDetails(cached_tokens=self.cached_tokens),
            completion_tokens_details=CompletionDetails(reasoning_tokens=self._parser.reasoning_tokens),
            diffusion=DiffusionUsage(canvases=self.canvases, steps=self.steps, seed=job.seed),
        )

    @property
    def _is_over(self) -> bool:
        """Whether a stop string, or the last call allowed, is complete."""
        return self._cutter.hit or (self._calls > 0 and self._calls == self._most_calls)

    def _read(self, canvas: Canvas) -> Iterator[list[Piece | Call]]:
        """What the parser makes of a canvas: token by token where each token counts, else at once."""
        if self._alignment is None and not self._may_end_early:
            yield self._parser.push(canvas.tokens)
            return
        for place, token in enumerate(canvas.tokens):
            reasoned = self._parser.reasoning_tokens
            pieces = self._parser.push((token,))
            if self._alignment and canvas.logprobs and self._parser.reasoning_tokens == reasoned:
                self._alignment.read(token, canvas.logprobs[place])
            yield pieces

    def _pass(self, pieces: Iterable[Piece | Call]) -> list[Piece | Call]:
        passed: list[Piece | Call] = []
        for piece in pieces:
            if self._is_over:
                break
            if isinstance(piece, Call) and self._most_calls != 0:
                self._calls += 1
                self._forget()
                passed.append(piece)
            elif isinstance(piece, Call):
                self._forget()
                passed.append(self._written(f"{piece.name}({piece.arguments})"))
            elif piece.kind == "content":
                passed.append(self._written(piece.text))
            elif self._include_reasoning:
                passed.append(piece)
        return passed

    def _written(self, text: str) -> Piece:
        """What is shown now that this text of the answer is there."""
        if self._alignment:
            self._alignment.wrote(text)
        return self._shown(self._cutter.push(text))

    def _shown(self, text: str) -> Piece:
        return Piece("content", text, self._alignment.show(len(text)) if self._alignment else ())

    def _forget(self) -> None:
        if self._alignment:
            self._alignment.forget()


def total(usages: Sequence[Usage]) -> Usage:
    """The counts of all choices for one prompt, which itself counts once. The seed is the first one's."""
    completion_tokens = sum(usage.completion_tokens for usage in usages)
    first = usages[0]
    return Usage(
        prompt_tokens=first.prompt_tokens,
        completion_tokens=completion_tokens,
        total_tokens=first.prompt_tokens + completion_tokens,
        prompt_tokens_details=first.prompt_tokens_details,
        completion_tokens_details=CompletionDetails(
            reasoning_tokens=sum(usage.completion_tokens_details.reasoning_tokens for usage in usages)
        ),
        diffusion=DiffusionUsage(
            canvases=sum(usage.diffusion.canvases for usage in usages),
            steps=sum(usage.diffusion.steps for usage in usages),
            seed=first.diffusion.seed,
        ),
    )


def _joined(pieces: Iterable[Piece | Call]) -> list[Piece | Call]:
    """Neighbouring pieces of one kind made one, empty ones left out."""
    joined: list[Piece | Call] = []
    for piece in pieces:
        last = joined[-1] if joined else None
        if isinstance(piece, Call):
            joined.append(piece)
        elif isinstance(last, Piece) and last.kind == piece.kind:
            joined[-1] = Piece(piece.kind, last.text + piece.text, last.tokens + piece.tokens)
        elif piece.text or piece.tokens:
            joined.append(piece)
    return joined
