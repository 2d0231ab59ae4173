"""An engine whose replies can be computed by hand: a token is a character, a canvas is four of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Sequence
from typing import Any

from serve.engine import Canvas, Event, Finished, Job, Piece, PromptError, PromptLengthError

CANVAS = 4
STEPS = 3
OPEN_THOUGHT, CLOSE_THOUGHT, END = "\x01", "\x02", "\x03"
PATIENCE = 5.0


def content_of(message: dict[str, Any]) -> str:
    content = message["content"]
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


class FakeParser:
    """Character by character; thoughts stand between two control characters, and a third one ends the reply."""

    def __init__(self) -> None:
        self.tokens = 0
        self.reasoning_tokens = 0
        self.ended = False
        self._thinking = False

    def push(self, tokens: Sequence[int]) -> list[Piece]:
        pieces = []
        for character in map(chr, tokens):
            if self.ended:
                break
            self.tokens += 1
            self.reasoning_tokens += self._thinking
            if character in (OPEN_THOUGHT, CLOSE_THOUGHT):
                self._thinking = character == OPEN_THOUGHT
            elif character == END:
                self.ended = True
            else:
                pieces.append(Piece("reasoning" if self._thinking else "content", character))
        return pieces

    def finish(self) -> list[Piece]:
        return []


class FakeEngine:
    """Answers `You said: <last message>`, after a thought when thinking is on.

    `answer` replaces the reply's text; a message "explode" raises after the first canvas; "hold" waits for `release`
    before each canvas but the first, so that a test decides how far the reply is.
    """

    max_model_len = 400

    def __init__(self, answer: Callable[[str], str] | None = None) -> None:
        self.answer = answer or (lambda said: f"You said: {said}")
        self.rendered: list[list[dict[str, Any]]] = []
        self.jobs: list[Job] = []
        self.ended: list[str] = []
        self.release = threading.Event()
        self.warm_up_error: Exception | None = None

    def render(self, messages: list[dict[str, Any]], *, thinking: bool) -> tuple[int, ...]:
        self.rendered.append(messages)
        said = content_of(messages[-1])
        if said == "refuse":
            raise PromptError("roles must alternate")
        if len(said) > 10 * self.max_model_len:
            raise PromptLengthError(len(said))
        return tuple(map(ord, (OPEN_THOUGHT if thinking else "") + said))

    def room(self, prompt_tokens: int) -> int:
        return (self.max_model_len - prompt_tokens) // CANVAS * CANVAS

    def parser(self, prompt: Sequence[int]) -> FakeParser:
        return FakeParser()

    def warm_up(self) -> None:
        if self.warm_up_error:
            raise self.warm_up_error

    def generate(self, job: Job) -> Generator[Event, None, None]:
        self.jobs.append(job)
        said = "".join(map(chr, job.prompt))
        thought = f"{OPEN_THOUGHT}Hmm.{CLOSE_THOUGHT}" if said.startswith(OPEN_THOUGHT) else ""
        said = said.removeprefix(OPEN_THOUGHT)
        text = thought + self.answer(said) + END
        whole, text = text, text[: job.max_new_tokens]
        ending = "abandoned"
        try:
            for start in range(0, len(text), CANVAS):
                if start:
                    self._between_canvases(said)
                yield Canvas(tuple(map(ord, text[start : start + CANVAS])), STEPS)
            ending = "finished"
            yield Finished("stop" if text == whole else "length")
        finally:
            self.ended.append(ending)

    def _between_canvases(self, said: str) -> None:
        if said == "explode":
            raise FloatingPointError("a secret of the engine")
        if said.startswith("hold"):
            assert self.release.wait(PATIENCE), "the test never released the engine"
        time.sleep(0)
