"""What the server needs from a model, and the immutable values that cross the thread between them.

    messages --render--> prompt tokens --generate (worker's thread)--> Canvas, Canvas, ..., Finished
                                                                          | tokens
                                                                     parser().push --> Piece, Piece, ...

`checkpoint_engine.py` is the engine over a loaded checkpoint; tests bring one whose answers can be computed by hand.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Sequence
from typing import Any, Literal, Protocol


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """One generation. `temperature` scales the sampler's own temperatures: 1 is as the checkpoint says."""

    prompt: tuple[int, ...]
    max_new_tokens: int
    seed: int
    temperature: float = 1.0


@dataclasses.dataclass(frozen=True)
class Canvas:
    """New tokens of one committed canvas, up to and including an end token, and the denoising steps it took."""

    tokens: tuple[int, ...]
    steps: int


@dataclasses.dataclass(frozen=True)
class Finished:
    """Always the last event: an end token came ("stop"), or the limit of new tokens ("length")."""

    reason: Literal["stop", "length"]


Event = Canvas | Finished


@dataclasses.dataclass(frozen=True)
class Piece:
    """Text of the reply, and whether the reader sees it as the model's reasoning or as its answer."""

    kind: Literal["reasoning", "content"]
    text: str


class Parser(Protocol):
    """Token ids of one reply, in order and cut anywhere, to pieces of text. Markers and end tokens give no text."""

    @property
    def tokens(self) -> int:
        """How many tokens were read: all that were pushed, up to and with the one that ends the reply."""

    @property
    def reasoning_tokens(self) -> int:
        """How many of them were reasoning."""

    @property
    def ended(self) -> bool:
        """Whether a token ended the reply; what follows is not read."""

    def push(self, tokens: Sequence[int]) -> list[Piece]:
        """What these tokens complete; text that may still become something else is held back."""

    def finish(self) -> list[Piece]:
        """What was held back."""


class PromptError(ValueError):
    """Messages that the chat template refuses; the text says why."""


class PromptLengthError(PromptError):
    """Messages whose text is too much for the model, whatever its tokens are; `least` is how many it has at least."""

    def __init__(self, least: int) -> None:
        super().__init__(f"the messages are at least {least} tokens")
        self.least = least


class Engine(Protocol):
    """A model behind the server. `generate` and `warm_up` run on the worker's thread, all else on any thread."""

    max_model_len: int
    """Positions of the model: prompt and reply together."""

    def render(self, messages: list[dict[str, Any]], *, thinking: bool) -> tuple[int, ...]:
        """The prompt for these messages (role, content, reasoning) as the chat template writes it.

        Raises:
            PromptError: the template refuses the messages, or the prompt would hold what the engine cannot read.
            PromptLengthError: so much text cannot fit `max_model_len`; found before it is tokenized.
        """

    def room(self, prompt_tokens: int) -> int:
        """How many new tokens fit after a prompt of this length; zero or less: the prompt does not fit."""

    def parser(self, prompt: Sequence[int]) -> Parser:
        """A fresh parser for the reply to this prompt."""

    def warm_up(self) -> None:
        """Compiles what the first request would otherwise wait for."""

    def generate(self, job: Job) -> Generator[Event, None, None]:
        """Canvases as they are committed, then `Finished`. Closing the generator ends the work."""
