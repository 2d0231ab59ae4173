"""Text and tokens of a checkpoint without its chat template: what completions and the tokenizer endpoints need."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from dgemma_jax.prompt.detokenize import IncrementalDetokenizer
from dgemma_jax.prompt.tokenizer import Tokenizer
from serve.engine import Call, Parser, Piece, PromptError, PromptLengthError


class CheckpointText:
    """Implements `serve.engine.PlainText`. `unread`: ids that stand for media."""

    def __init__(
        self, tokenizer: Tokenizer, *, vocabulary: int, positions: int, unread: Collection[int | None]
    ) -> None:
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._most_bytes = positions * tokenizer.longest_token
        self._bos = tokenizer.token_id("<bos>")
        self._unread = frozenset(unread)

    def tokenize(self, text: str, *, bos: bool) -> tuple[int, ...]:
        """As `PlainText.tokenize`."""
        size = len(text.encode("utf-8", "surrogatepass"))
        if size > self._most_bytes:
            raise PromptLengthError(-(-size // self._tokenizer.longest_token))
        tokens = tuple(self._tokenizer.encode(text))
        return (self._bos, *tokens) if bos and tokens[:1] != (self._bos,) else tokens

    def detokenize(self, tokens: Sequence[int]) -> str:
        """As `PlainText.detokenize`."""
        self._require_known(tokens)
        return self._tokenizer.decode(tokens)

    def token_bytes(self, token: int) -> bytes:
        """As `PlainText.token_bytes`."""
        return self._tokenizer.token_bytes(token)

    def is_marker(self, token: int) -> bool:
        """As `PlainText.is_marker`."""
        return token in self._tokenizer.special_ids

    def prompt(self, given: str | Sequence[int]) -> tuple[int, ...]:
        """As `PlainText.prompt`."""
        tokens = self.tokenize(given, bos=True) if isinstance(given, str) else tuple(given)
        self._require_known(tokens)
        if not self._unread.isdisjoint(tokens):
            raise PromptError("it would place an image, a video or sound in the prompt, but none was sent")
        return tokens

    def parser(self) -> Parser:
        """As `PlainText.parser`."""
        return _PlainParser(self._tokenizer)

    def _require_known(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            if not 0 <= token < self._vocabulary:
                raise PromptError(f"token {token} is not in the vocabulary of {self._vocabulary}")


class _PlainParser:
    """Everything is content; markers give no text, and only the engine knows the end."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokens = 0
        self.reasoning_tokens = 0
        self.ended = False
        self._detokenizer = IncrementalDetokenizer(tokenizer)

    def push(self, tokens: Sequence[int]) -> list[Piece | Call]:
        self.tokens += len(tokens)
        return [Piece("content", self._detokenizer.push(tokens))]

    def finish(self) -> list[Piece | Call]:
        return [Piece("content", self._detokenizer.finish())]
