"""The tokens of an answer are its text, whatever the model writes and wherever canvases and stop strings cut it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from hypothesis import example, given, settings
from hypothesis import strategies as st

from dgemma_jax.prompt.parse import ResponseParser
from dgemma_jax.prompt.tokenizer import Tokenizer
from serve.alignment import Alignment
from serve.checkpoint_engine import _Parser
from serve.checkpoint_text import CheckpointText
from serve.config import DEMO_CHECKPOINT
from serve.engine import Canvas, Piece, TokenLogprob
from serve.logprobs import CompletionTokens, of_chat, tokens_of
from serve.reply import Reply

TOKENIZER = Tokenizer.from_folder(DEMO_CHECKPOINT)
TEXT = CheckpointText(TOKENIZER, vocabulary=TOKENIZER.vocab_size, positions=100, unread=())
MARKERS = [TOKENIZER.token_id(name) for name in ("<|channel>", "<channel|>", "<turn|>")]
SAID = st.sampled_from(["a", "Yes, the", "\n", "\n\n b", "\u20ac", "\U0001f642\u00e9", "thought\n", "call:f{}", " c."])
THOUGHT = [MARKERS[0], *TOKENIZER.encode("thought\nHm"), MARKERS[1]]
PARTS = st.lists(
    SAID.map(TOKENIZER.encode) | st.just(THOUGHT) | st.sampled_from(MARKERS).map(lambda index: [index]), max_size=12
)
STOPS = st.lists(st.sampled_from(["he", "a", ", t", "\u20ac", "\n b", "s.", "zz"]), max_size=2)


def read(ids: Sequence[int], stops: Sequence[str], size: int, parser=None) -> list:
    """The pieces of a reply in canvases of this size. A token's log-probability is its place."""
    reply = Reply(
        parser or _Parser(ResponseParser(TOKENIZER)), stops, include_reasoning=True, alignment=Alignment(TEXT)
    )
    pieces: list = []
    for start in range(0, len(ids), size):
        places = range(start, min(start + size, len(ids)))
        logprobs = tuple(TokenLogprob(-float(place), ((ids[place], -float(place)),)) for place in places)
        pieces += reply.push(Canvas(tuple(ids[place] for place in places), 1, logprobs))
        if reply.finish_reason:
            return pieces
    return pieces + reply.finish("length")


@settings(max_examples=150, derandomize=True, deadline=None)
@given(PARTS, STOPS, st.integers(1, 9))
@example([TOKENIZER.encode("\u20ac")[:1], TOKENIZER.encode("a")], [], 1)
@example([THOUGHT, TOKENIZER.encode("\n"), TOKENIZER.encode("\n\n b")], [], 2)
def test_the_bytes_of_the_tokens_are_the_content(parts, stops, size):
    ids = [index for part in parts for index in part]
    pieces = read(ids, stops, size)
    content = "".join(piece.text for piece in pieces if isinstance(piece, Piece) and piece.kind == "content")
    tokens = tokens_of(pieces)
    assert b"".join(token.written for token in tokens).decode("utf-8", "replace") == content
    assert sum(token.characters for token in tokens) == len(content)
    places = [int(-token.logprob.logprob) for token in tokens]
    assert places == sorted(set(places)), "each once, in order"
    for token, place in zip(tokens, places, strict=True):
        assert token.written in TEXT.token_bytes(ids[place])
    assert tokens == tokens_of(read(ids, stops, 1)), "whatever the cuts"


def test_a_token_that_a_stop_string_cuts_is_told_as_far_as_it_is_shown():
    ids = TOKENIZER.encode("Yes, the")
    longest = max(ids, key=lambda index: len(TEXT.token_bytes(index)))
    written = TEXT.token_bytes(longest).decode()
    assert len(written) > 1
    pieces = read([longest], [written[1:]], 1)
    assert [token.written.decode() for token in tokens_of(pieces)] == [written[0]]


def test_a_part_of_a_character_is_spelled_in_bytes_and_stands_where_it_begins():
    ids = [
        next(index for index in range(TOKENIZER.vocab_size) if TEXT.token_bytes(index) == bytes([b]))
        for b in b"\xe2\x82\xac"
    ]
    tokens = tokens_of(read([*TOKENIZER.encode("a"), *ids], [], 4, TEXT.parser()))
    assert [told.token for told in of_chat(tokens, TEXT).content] == ["a", "\\xe2", "\\x82", "\\xac"]
    older = CompletionTokens(TEXT).part(tokens)
    assert older.tokens == ["a", "bytes:\\xe2", "bytes:\\x82", "bytes:\\xac"]
    assert older.text_offset == [0, 1, 1, 1]


def test_an_impossible_token_has_openais_least_number():
    tokens = tokens_of(read(TOKENIZER.encode("a"), [], 1))
    (token,) = (
        type(token)(token.written, token.characters, TokenLogprob(-math.inf, ((token_id, -math.inf),)))
        for token, token_id in zip(tokens, TOKENIZER.encode("a"), strict=True)
    )
    (told,) = of_chat([token], TEXT).content
    assert told.logprob == told.top_logprobs[0].logprob == -9999.0
    assert CompletionTokens(TEXT).part([token]).top_logprobs == [{"a": -9999.0}]
