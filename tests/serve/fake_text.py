"""Text and tokens of the fake engine: a token is a character, and one control character begins every prompt."""

from __future__ import annotations

from collections.abc import Sequence

from serve.engine import Call, Piece, PromptError, PromptLengthError

BOS = "\x07"
VOCABULARY = 0x110000
PICTURE = "\x06"


class FakePlainParser:
    """Control characters give no text."""

    def __init__(self) -> None:
        self.tokens = 0
        self.reasoning_tokens = 0
        self.ended = False

    def push(self, tokens: Sequence[int]) -> list[Piece | Call]:
        self.tokens += len(tokens)
        return [Piece("content", "".join(chr(token) for token in tokens if token >= ord(" ")))]

    def finish(self) -> list[Piece | Call]:
        return []


class FakeText:
    def __init__(self, max_model_len: int) -> None:
        self._max_model_len = max_model_len

    def tokenize(self, text: str, *, bos: bool) -> tuple[int, ...]:
        if len(text) > 10 * self._max_model_len:
            raise PromptLengthError(len(text))
        return tuple(map(ord, (BOS if bos and not text.startswith(BOS) else "") + text))

    def detokenize(self, tokens: Sequence[int]) -> str:
        if any(token >= VOCABULARY for token in tokens):
            raise PromptError("no such token")
        return "".join(map(chr, tokens))

    def token_bytes(self, token: int) -> bytes:
        return chr(token).encode()

    def is_marker(self, token: int) -> bool:
        return token < ord(" ")

    def prompt(self, given: str | Sequence[int]) -> tuple[int, ...]:
        tokens = self.tokenize(given, bos=True) if isinstance(given, str) else tuple(given)
        if PICTURE in self.detokenize(tokens):
            raise PromptError("a picture, but none was sent")
        return tokens

    def parser(self) -> FakePlainParser:
        return FakePlainParser()
