"""Streamed text is whole characters and adds up to the decoded text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgemma_jax.prompt.detokenize import IncrementalDetokenizer
from dgemma_jax.prompt.tokenizer import Tokenizer


def stream(tokenizer: Tokenizer, chunks: list[list[int]]) -> list[str]:
    detokenizer = IncrementalDetokenizer(tokenizer)
    return [*(detokenizer.push(chunk) for chunk in chunks), detokenizer.finish()]


TEXT = "a 🙂 👨‍👩‍👧‍👦 e\u0301 東京は 한국어 <|turn>naïve\n"


def test_characters_arrive_whole_id_by_id(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(TEXT)
    pieces = stream(tokenizer, [[index] for index in ids])
    assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=True) == TEXT.replace("<|turn>", "")
    assert not any("\ufffd" in piece for piece in pieces)


@given(data=st.data())
def test_any_ids_in_any_chunks_join_to_the_decoded_text(tokenizer: Tokenizer, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(-1, tokenizer.vocab_size + 3)))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(ids)), max_size=6)))
    chunks = [ids[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(ids)], strict=True)]
    assert "".join(stream(tokenizer, chunks)) == tokenizer.decode(ids, skip_special_tokens=True)


def test_bytes_of_a_character_are_held_back_until_the_last_one(byte_level: Tokenizer) -> None:
    first, *middle, last = byte_level.encode("🙂")
    detokenizer = IncrementalDetokenizer(byte_level)
    assert detokenizer.push([first]) == ""
    assert detokenizer.push(middle) == ""
    assert detokenizer.push([last]) == "🙂"
    assert detokenizer.finish() == ""


def test_special_tokens_between_the_bytes_of_a_character_do_not_split_it(byte_level: Tokenizer) -> None:
    first, *rest = byte_level.encode("🙂")
    pieces = stream(byte_level, [[first, byte_level.token_id("<pad>")], rest])
    assert pieces == ["", "🙂", ""]


def test_finish_replaces_incomplete_bytes_and_starts_afresh(byte_level: Tokenizer) -> None:
    detokenizer = IncrementalDetokenizer(byte_level)
    detokenizer.push(byte_level.encode("é")[:1])
    assert detokenizer.finish() == "\ufffd"
    assert detokenizer.push(byte_level.encode("ok")) == "ok"


@pytest.mark.parametrize("length", [10, 10_000])
def test_memory_of_the_past_is_bounded(byte_level: Tokenizer, length: int) -> None:
    detokenizer = IncrementalDetokenizer(byte_level)
    for index in byte_level.encode("東京" * length):
        detokenizer.push([index])
    held, _ = detokenizer._decoder.getstate()
    assert len(held) < 4
