"""Text and tokens of a real tokenizer, the demo's, without its chat template."""

from __future__ import annotations

import pytest

from dgemma_jax.prompt.tokenizer import Tokenizer
from serve.checkpoint_text import CheckpointText
from serve.config import DEMO_CHECKPOINT
from serve.engine import PromptError, PromptLengthError


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_folder(DEMO_CHECKPOINT)


@pytest.fixture(scope="module")
def text(tokenizer) -> CheckpointText:
    unread = [tokenizer.token_id("<|turn>"), None]
    return CheckpointText(tokenizer, vocabulary=tokenizer.vocab_size, positions=100, unread=unread)


def test_a_prompt_begins_with_bos_once(text, tokenizer):
    bos = tokenizer.token_id("<bos>")
    assert text.prompt("Hello") == text.prompt("<bos>Hello") == (bos, *tokenizer.encode("Hello"))
    assert text.prompt("") == (bos,)
    assert text.prompt([5, 6]) == (5, 6)
    assert text.tokenize("Hello", bos=False) == tuple(tokenizer.encode("Hello"))


@pytest.mark.parametrize("said", ["Hello!", "<bos>Hi<turn|>\n", "caf\u00e9 \U0001f642 \u4f60"])
def test_tokens_give_their_text_back_with_markers(text, said):
    assert text.detokenize(text.tokenize(said, bos=False)) == said


def test_what_cannot_be_read_is_refused(text, tokenizer):
    for given in ("a<|turn>", [tokenizer.token_id("<|turn>")], [tokenizer.vocab_size], [-1]):
        with pytest.raises(PromptError):
            text.prompt(given)
    with pytest.raises(PromptError, match=str(tokenizer.vocab_size)):
        text.detokenize([tokenizer.vocab_size])


def test_text_that_cannot_fit_is_refused_by_its_size(text):
    with pytest.raises(PromptLengthError) as raised:
        text.tokenize("x" * 100_000, bos=True)
    assert raised.value.least > 100


def test_the_plain_parser_gives_all_text_whole_characters_and_no_markers(text, tokenizer):
    said = "<|channel>thought\nHmm.<channel|>caf\u00e9 \U0001f642<turn|>"
    parser, tokens = text.parser(), tokenizer.encode(said)
    pieces = [piece for token in tokens for piece in parser.push([token])] + parser.finish()
    assert {piece.kind for piece in pieces} == {"content"}
    assert "".join(piece.text for piece in pieces) == "thought\nHmm.caf\u00e9 \U0001f642"
    assert (parser.tokens, parser.reasoning_tokens, parser.ended) == (len(tokens), 0, False)
