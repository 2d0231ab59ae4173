"""Grammars that an answer is held to, over llguidance: which tokens may follow which.

A grammar is written in llguidance's dialect of Lark, in which `%json {...}` stands for what fits a JSON schema and
`<|channel>` for a special token. `prompt/answer_grammar.py` writes the usual ones.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from dgemma_jax.prompt.tokenizer import Tokenizer

_PLACE = re.compile(r"^(at )?\d+\(\d+\): (failed to compile JSON schema: )?")
"""Where in the Lark text, which no user wrote."""


class GrammarError(ValueError):
    """A grammar that cannot be followed: not understood, impossible, or too large."""


class _Words:
    """A tokenizer as llguidance asks for it."""

    def __init__(self, tokenizer: Tokenizer, end_id: int) -> None:
        self.eos_token_id = end_id
        self.bos_token_id = None
        self.tokens = [tokenizer.token_bytes(index) for index in range(tokenizer.vocab_size)]
        self.special_token_ids = sorted(tokenizer.special_ids)
        self._tokenizer = tokenizer

    def __call__(self, text: bytes | str) -> list[int]:
        return self._tokenizer.encode_plain(text.decode() if isinstance(text, bytes) else text)


class Vocabulary:
    """The tokens that grammars are followed in. Immutable; made once a model, as it reads all tokens.

    size: of the model's vocabulary. end_ids: tokens that end an answer; a grammar allows them where it may end.
    """

    def __init__(self, tokenizer: Tokenizer, size: int, end_ids: Sequence[int]) -> None:
        words = TokenizerWrapper(_Words(tokenizer, end_ids[0]))
        self._tokenizer = LLTokenizer(words, n_vocab=size, eos_token=list(end_ids))
        self.size, self.end_ids = size, frozenset(end_ids)

    def grammar(self, lark: str) -> Grammar:
        """Reads a grammar. Takes up to a second for a large one; safe on any thread.

        Raises:
            GrammarError: it is not one, or there is nothing that it allows; the text says where.
        """
        return Grammar(self, lark)

    def _matcher(self, lark: str) -> LLMatcher:
        return LLMatcher(self._tokenizer, LLMatcher.grammar_from_lark(lark), log_level=0)


class Grammar:
    """What an answer may be. Immutable; `begin` follows it once."""

    def __init__(self, vocabulary: Vocabulary, lark: str) -> None:
        self._vocabulary = vocabulary
        self._first = vocabulary._matcher(lark)
        _require_sound(self._first)

    def begin(self) -> Matcher:
        """At the beginning of an answer."""
        return Matcher(self._first.deep_copy(), self._vocabulary)


class Matcher:
    """A place in a grammar. Raises GrammarError from any method where the grammar turns out to be too large.

    Where nothing but an end may follow, llguidance has stopped: it says so, but takes no end token any more.
    """

    def __init__(self, matcher: LLMatcher, vocabulary: Vocabulary) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary

    def copy(self) -> Matcher:
        """Goes its own way."""
        return Matcher(self._matcher.deep_copy(), self._vocabulary)

    def fitting(self, tokens: Sequence[int]) -> int:
        """How many of the tokens may follow, one after the other. None may follow an end."""
        ends = self._vocabulary.end_ids
        count = self._matcher.validate_tokens(list(tokens))
        _require_sound(self._matcher)
        if count < len(tokens) and tokens[count] in ends and ends.isdisjoint(tokens[:count]):
            behind = self.copy()
            behind.accept(tokens[:count])
            return count + behind._matcher.is_stopped()
        return count

    def accept(self, tokens: Sequence[int]) -> None:
        """Goes on behind tokens that fit. Behind an end nothing follows."""
        written = [token for token in tokens if token not in self._vocabulary.end_ids]
        if written:
            self._matcher.consume_tokens(written)
            _require_sound(self._matcher)

    def forced(self) -> list[int]:
        """The tokens that must follow, as far as there is no choice."""
        tokens = self._matcher.compute_ff_tokens()
        _require_sound(self._matcher)
        return tokens

    def allowed(self) -> np.ndarray:
        """Which tokens may follow: bool [V]."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        _require_sound(self._matcher)
        size = self._vocabulary.size
        allowed_V = np.zeros(size, bool)
        known = np.unpackbits(bits, bitorder="little")[:size].astype(bool)
        allowed_V[: len(known)] = known
        return allowed_V


def _require_sound(matcher: LLMatcher) -> None:
    if matcher.is_error():
        raise GrammarError(_PLACE.sub("", matcher.get_error().strip().partition("\n")[0]))
