"""What the server needs from a model, and the immutable values that cross the thread between them.

    messages --render--> prompt tokens --+
                                        expand --> Prompt --> Job --submit, step--> Prefilled, Canvas, ..., Finished
    bytes of media ----read---> Medium --+                                                       | tokens
                                                                                parser().push --> Piece, Call, ...

`checkpoint_engine.py` is the engine over a loaded checkpoint; tests bring one whose answers can be computed by hand.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

MediaKind = Literal["image", "video"]
Detail = Literal["auto", "low", "high"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How canvases are denoised; see `dgemma_jax.GenerationConfig`."""

    max_steps: int
    entropy_bound: float
    confidence_threshold: float
    t_min: float
    t_max: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnswerFormat:
    """What an answer must be, after its thought: text of one kind, calls of functions, or either where both are given.

    schema: JSON text that fits it. regex: what matches it as a whole. choice: one of these texts. text: any, and calls
    may follow it.
    functions: those that may be called, as OpenAI declares them; `most_calls`: 1, or None for any number.
    param: the field of the request that asks for it.
    """

    param: str
    schema: dict[str, Any] | None = None
    regex: str | None = None
    choice: tuple[str, ...] = ()
    text: bool = False
    functions: tuple[dict[str, Any], ...] = ()
    most_calls: int | None = None


class Grammar(Protocol):
    """An answer format that the engine can follow. Only the engine looks inside."""


class Images(Protocol):
    """All images of a prompt, ready for the model. Only the engine looks inside."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """One generation. `temperature` scales the sampler's own temperatures: 1 is as the checkpoint says.

    `sampling` is None where all of it is to be as the checkpoint says. `top_k`, `top_p` and `logprobs` are those of
    `dgemma_jax.SamplingOptions`. `images`: of `Engine.expand`. `draft_every`: a `Draft` after every so many steps; 0 is
    never. `grammar`: of `Engine.grammar`.
    """

    prompt: tuple[int, ...]
    max_new_tokens: int
    seed: int
    temperature: float = 1.0
    sampling: Sampling | None = None
    top_k: int = 0
    top_p: float = 1.0
    logprobs: int | None = None
    draft_every: int = 0
    grammar: Grammar | None = dataclasses.field(default=None, compare=False, repr=False)
    images: Images | None = dataclasses.field(default=None, compare=False, repr=False)


@dataclasses.dataclass(frozen=True)
class TokenLogprob:
    """How sure the model was of a token: its log-probability, and the likeliest tokens in its place with theirs."""

    logprob: float
    likeliest: tuple[tuple[int, float], ...]


@dataclasses.dataclass(frozen=True)
class Prefilled:
    """The prompt is read; so many of its tokens did not have to be, because an earlier prompt began with them."""

    cached_tokens: int


@dataclasses.dataclass(frozen=True)
class Draft:
    """The canvas under way, whole, as it is predicted after so many steps. The next one may differ anywhere."""

    tokens: tuple[int, ...]
    step: int


@dataclasses.dataclass(frozen=True)
class Canvas:
    """New tokens of one committed canvas, up to and including an end token, and the denoising steps it took.

    `logprobs`: one for each token, where the job asks for them.
    """

    tokens: tuple[int, ...]
    steps: int
    logprobs: tuple[TokenLogprob, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Finished:
    """The last event: an end token came ("stop"), or the limit of new tokens ("length")."""

    reason: Literal["stop", "length"]


@dataclasses.dataclass(frozen=True)
class Failed:
    """The last event of a job that could not be done. Other jobs are none the worse."""

    error: Exception


Event = Prefilled | Draft | Canvas | Finished | Failed


@dataclasses.dataclass(frozen=True)
class TokenText:
    """A token as the text of an answer has it: its bytes, and how many characters they complete, maybe none yet."""

    written: bytes
    characters: int
    logprob: TokenLogprob


@dataclasses.dataclass(frozen=True)
class Piece:
    """Text of the reply, and whether the reader sees it as the model's reasoning or as its answer.

    Parsers leave `tokens` empty; `serve.reply` fills in those of an answer whose log-probabilities are asked for.
    """

    kind: Literal["reasoning", "content"]
    text: str
    tokens: tuple[TokenText, ...] = ()


@dataclasses.dataclass(frozen=True)
class Call:
    """One complete call of a function; `arguments` is the text of a JSON object."""

    name: str
    arguments: str


class Medium(Protocol):
    """An image or a video, read by the engine and ready to stand in a prompt. Only the engine looks inside."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompt:
    """Prompt tokens with media in their places, and all images, frames of videos included."""

    tokens: tuple[int, ...]
    images: Images | None = None


class Parser(Protocol):
    """Token ids of one reply, in order and cut anywhere, to text and calls. Markers and end tokens give no text.

    `copy.deepcopy` of one goes its own way.
    """

    @property
    def tokens(self) -> int:
        """How many tokens were read: all that were pushed, up to and with the one that ends the reply."""

    @property
    def reasoning_tokens(self) -> int:
        """How many of them were reasoning."""

    @property
    def ended(self) -> bool:
        """Whether a token ended the reply; what follows is not read."""

    def push(self, tokens: Sequence[int]) -> list[Piece | Call]:
        """What these tokens complete; text that may still become something else is held back."""

    def finish(self) -> list[Piece | Call]:
        """What was held back."""


class MediumError(ValueError):
    """An image or a video that cannot be read; the text says why."""


class FormatError(ValueError):
    """An answer format that cannot be held to: not understood, impossible or too large; the text says why."""


class PromptError(ValueError):
    """Messages that the chat template refuses; the text says why, `param` names the field where that is known."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class PromptLengthError(PromptError):
    """Messages whose text is too much for the model, whatever its tokens are; `least` is how many it has at least."""

    def __init__(self, least: int) -> None:
        super().__init__(f"the messages are at least {least} tokens")
        self.least = least


class PlainText(Protocol):
    """Text and tokens without the chat template; markers written in a text are markers. For any thread."""

    def tokenize(self, text: str, *, bos: bool) -> tuple[int, ...]:
        """The tokens of a text; with `bos` the token that begins every prompt comes first, if it does not yet.

        Raises:
            PromptLengthError: so much text cannot fit the model; found before it is tokenized.
        """

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of tokens, markers included. Raises PromptError for a token that is not in the vocabulary."""

    def token_bytes(self, token: int) -> bytes:
        """What one token writes, possibly a part of a character; a marker writes its name."""

    def is_marker(self, token: int) -> bool:
        """Whether a token is a marker, which no reply shows as text."""

    def prompt(self, given: str | Sequence[int]) -> tuple[int, ...]:
        """A text to go on from as a prompt, or its tokens, which are taken as they are.

        Raises:
            PromptError: the engine cannot read it.
            PromptLengthError: as `tokenize`.
        """

    def parser(self) -> Parser:
        """A fresh parser for what follows such a prompt: all of it is content."""


class Engine(Protocol):
    """A model behind the server. What is about jobs runs on the worker's thread, all else on any thread."""

    max_model_len: int
    """Tokens that prompt and reply may have together: what the model has positions and the server memory for."""

    dtype: str
    """The type of the weights, for people."""

    slots: int
    """Jobs that are worked on together. Further ones wait in a line of the engine's own."""

    sampling: Sampling
    """The checkpoint's own."""

    media: frozenset[MediaKind]
    """What it reads besides text."""

    text: PlainText

    def render(
        self, messages: list[dict[str, Any]], *, thinking: bool, tools: list[dict[str, Any]] | None = None
    ) -> tuple[int, ...]:
        """The prompt for these messages (role, content, reasoning, tool_calls) as the chat template writes it.

        A medium in the content is one token, for `expand` to fill. `tools` are OpenAI's; None: nothing may be called.

        Raises:
            PromptError: the template refuses the messages, or the prompt would hold what the engine cannot read.
            PromptLengthError: so much text cannot fit `max_model_len`; found before it is tokenized.
        """

    def medium_bytes(self, kind: MediaKind, detail: Detail) -> int:
        """The most memory that a medium takes once it is read."""

    def read(self, data: bytes, kind: MediaKind, detail: Detail) -> Medium:
        """Decodes the file of an image or a video. `detail` says how finely an image is seen.

        Raises:
            MediumError: no such file, damaged, or too large.
        """

    def expand(self, prompt: Sequence[int], media: Sequence[Medium]) -> Prompt:
        """A rendered prompt with its media, in the order of the messages.

        Raises:
            PromptError: the media are too much for one prompt.
        """

    def grammar(self, format: AnswerFormat, prompt: Sequence[int], *, thinking: bool) -> Grammar:
        """What holds the reply to this prompt to the format. May take a second for a large one.

        Raises:
            FormatError: it cannot be held to. A job with it may still fail with one.
        """

    def room(self, prompt_tokens: int) -> int:
        """How many new tokens fit after a prompt of this length; zero or less: the prompt does not fit."""

    def parser(self, prompt: Sequence[int]) -> Parser:
        """A fresh parser for the reply to this prompt."""

    def warm_up(self, progress: Callable[[str], None]) -> None:
        """Compiles what requests would otherwise wait for; a line for each part. Before the first job.

        What seldom is needed may still be compiled after it returns, until `close`.
        """

    def close(self) -> None:
        """Ends what goes on beside the jobs. After the last one."""

    def submit(self, job: Job) -> int:
        """Takes a job and returns its id. Raises ValueError for one that `room` would not have allowed."""

    def cancel(self, id: int) -> None:
        """Ends a job before the next unit of work: no more events. Jobs that are over are no error."""

    @property
    def running(self) -> int:
        """Jobs that are worked on."""

    @property
    def memory_share(self) -> float:
        """Of the memory for keys and values, how much the jobs that are worked on take: 0 to 1."""

    @property
    def busy(self) -> bool:
        """Whether `step` has anything to do."""

    def step(self) -> list[tuple[int, Event]]:
        """One unit of work, such as a few denoising steps of all running jobs, and what happened, by id.

        Raises:
            Exception: the engine is broken, and no job will be answered any more.
        """
