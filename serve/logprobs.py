"""Log-probabilities of an answer's tokens in OpenAI's shapes: the chat's, and the older one of completions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from serve.completion_schema import CompletionLogprobs
from serve.engine import Call, Piece, PlainText, TokenText
from serve.responses import ChoiceLogprobs, ContentLogprob, TopLogprob

_LEAST = -9999.0
"""What OpenAI writes for a probability of zero, as JSON has no infinity."""


def tokens_of(pieces: Iterable[Piece | Call]) -> list[TokenText]:
    """The tokens of all pieces."""
    return [token for piece in pieces if isinstance(piece, Piece) for token in piece.tokens]


def of_chat(tokens: Iterable[TokenText], text: PlainText) -> ChoiceLogprobs:
    """`choices[].logprobs` of a chat completion, or of one of its chunks."""
    return ChoiceLogprobs(content=[_content_logprob(token, text) for token in tokens])


def _content_logprob(token: TokenText, text: PlainText) -> ContentLogprob:
    likeliest = ((text.token_bytes(index), logprob) for index, logprob in token.logprob.likeliest)
    return ContentLogprob(
        token=_spelled(token.written),
        logprob=_finite(token.logprob.logprob),
        bytes=list(token.written),
        top_logprobs=[
            TopLogprob(token=_spelled(written), logprob=_finite(logprob), bytes=list(written))
            for written, logprob in likeliest
        ],
    )


class CompletionTokens:
    """The tokens of one choice of `/v1/completions`, part by part: their places in the text go on."""

    def __init__(self, text: PlainText) -> None:
        self._text = text
        self._characters = 0

    def part(self, tokens: Sequence[TokenText]) -> CompletionLogprobs:
        """`choices[].logprobs` of a completion, or of one of its chunks."""
        offsets = []
        for token in tokens:
            offsets.append(self._characters)
            self._characters += token.characters
        return CompletionLogprobs(
            text_offset=offsets,
            token_logprobs=[_finite(token.logprob.logprob) for token in tokens],
            tokens=[_spelled(token.written, "bytes:") for token in tokens],
            top_logprobs=[self._likeliest(token) for token in tokens],
        )

    def _likeliest(self, token: TokenText) -> dict[str, float]:
        likeliest = [(self._text.token_bytes(index), logprob) for index, logprob in token.logprob.likeliest]
        likeliest.append((token.written, token.logprob.logprob))
        found: dict[str, float] = {}
        for written, logprob in likeliest:
            found.setdefault(_spelled(written, "bytes:"), _finite(logprob))  # of two spelled alike the likelier stays
        return found


def _spelled(written: bytes, of_bytes: str = "") -> str:
    """A token as text; one that is a part of a character byte by byte, behind `of_bytes`."""
    try:
        return written.decode()
    except UnicodeDecodeError:
        return of_bytes + "".join(f"\\x{byte:02x}" for byte in written)


def _finite(logprob: float) -> float:
    return max(logprob, _LEAST)
