"""Text to ids and back, the same through all three kinds of tokenizer file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from dgemma_jax.prompt.tokenizer import CHAT_TOKENS, GUARD, MEDIA_TOKENS, Tokenizer, TokenizerError

TEXTS = [
    "",
    " ",
    "  two  spaces  ",
    "\n\n\t tab and newlines \r\n",
    "plain ASCII, 12 + 30 = 42",
    "naïve café — “quotes”",
    "combining: e\u0301 a\u0308\u0323",
    "emoji: 🙂 👍🏽 🏳️‍🌈 👨‍👩‍👧‍👦 🇫🇷",
    "東京は日本の首都です 你好 한국어",
    "עברית العربية हिन्दी ไทย",
    "\x00\x01\u200b\ufeff\ufffd\U0010ffff",
    "looks like a byte piece: <0x41>",
]


@pytest.mark.parametrize("text", TEXTS)
def test_decoding_gives_back_the_encoded_text(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode(tokenizer.encode_plain(text)) == text


@given(text=st.text())
def test_any_text_survives_a_byte_level_tokenizer(byte_level: Tokenizer, text: str) -> None:
    assert byte_level.decode(byte_level.encode(text)) == text
    assert byte_level.decode(byte_level.encode_plain(text)) == text


def test_special_tokens_in_text_become_single_ids_and_nothing_is_added(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("<bos><|turn>user<turn|>")
    assert ids[:2] == [tokenizer.token_id("<bos>"), tokenizer.token_id("<|turn>")]
    assert ids[2:-1] == tokenizer.encode("user")
    assert ids[-1] == tokenizer.token_id("<turn|>")
    assert tokenizer.encode("") == []


@pytest.mark.parametrize("token", [*CHAT_TOKENS, *MEDIA_TOKENS])
def test_every_marker_is_one_special_id_that_decodes_to_itself(tokenizer: Tokenizer, token: str) -> None:
    assert tokenizer.encode(token) == [tokenizer.token_id(token)]
    assert tokenizer.token_id(token) in tokenizer.special_ids
    assert tokenizer.decode([tokenizer.token_id(token)]) == token
    assert tokenizer.decode([tokenizer.token_id(token)], skip_special_tokens=True) == ""


def test_a_token_file_that_adds_bos_truncates_and_pads_still_gives_the_text_only(
    train_byte_level: Callable[[list[str]], tokenizers.Tokenizer], tmp_path: Path
) -> None:
    written = train_byte_level(list(CHAT_TOKENS))
    written.post_processor = tokenizers.processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", written.token_to_id("<bos>"))]
    )
    written.enable_truncation(3)
    written.enable_padding(length=50)
    written.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer.decode(tokenizer.encode("The sky is blue.")) == "The sky is blue."


@pytest.mark.parametrize("token", [*CHAT_TOKENS, *MEDIA_TOKENS])
def test_markers_in_plain_text_are_spelled_out(tokenizer: Tokenizer, token: str) -> None:
    for text in (token, f"a{token}b", f"{token}{token}", f"<{token}", f"{token[:-1]}{token}"):
        ids = tokenizer.encode_plain(text)
        assert tokenizer.special_ids.isdisjoint(ids)
        assert tokenizer.decode(ids) == text


marker_soup = st.lists(st.sampled_from([*CHAT_TOKENS, "<", "|", ">", "|>", "<|", "turn", "x", " ", GUARD])).map("".join)


@given(text=marker_soup)
def test_no_text_forges_a_marker(byte_level: Tokenizer, text: str) -> None:
    plain = byte_level.encode_plain(text)
    assert byte_level.special_ids.isdisjoint(plain)
    assert byte_level.decode(plain) == text


@given(text=marker_soup)
def test_guarded_text_between_real_markers_adds_no_marker_and_no_trace(byte_level: Tokenizer, text: str) -> None:
    ids = byte_level.encode_guarded(f"<|turn>{byte_level.guard(text)}<turn|>")
    assert (ids[0], ids[-1]) == (byte_level.token_id("<|turn>"), byte_level.token_id("<turn|>"))
    assert byte_level.special_ids.isdisjoint(ids[1:-1])
    assert byte_level.decode(ids[1:-1]) == text.replace(GUARD, "")


@pytest.mark.parametrize("kept", [lambda text: text, str.strip], ids=["kept", "trimmed"])
@given(
    texts=st.lists(st.tuples(marker_soup, st.sampled_from(["", " ", "\n\t"])).map("".join), max_size=5),
    cuts=st.lists(st.tuples(st.sampled_from([*CHAT_TOKENS, *MEDIA_TOKENS]), st.integers(1, 20)), max_size=3),
)
def test_guarded_texts_side_by_side_add_no_marker(
    byte_level: Tokenizer, texts: list[str], cuts: list[tuple[str, int]], kept: Callable[[str], str]
) -> None:
    for marker, place in cuts:  # halves of a marker, beside each other
        texts = [*texts, marker[: place % len(marker)], marker[place % len(marker) :]]
    ids = byte_level.encode_guarded("<|turn>" + "".join(kept(byte_level.guard(text)) for text in texts) + "<turn|>")
    assert (ids[0], ids[-1]) == (byte_level.token_id("<|turn>"), byte_level.token_id("<turn|>"))
    assert byte_level.special_ids.isdisjoint(ids[1:-1])
    assert byte_level.decode(ids[1:-1]) == "".join(kept(text.replace(GUARD, "")) for text in texts)


@pytest.mark.parametrize("text", ["1 <", "a <|tu ", "<\n", "<image", 'x<<|"|'])
def test_the_beginning_of_a_marker_at_the_end_of_a_text_changes_no_id(tokenizer: Tokenizer, text: str) -> None:
    for before, after in (("<|turn>", "<turn|>\n"), ("<turn|>", "<|image|>")):
        for kept in (text, text.strip()):
            guarded = tokenizer.guard(text).strip() if kept == text.strip() else tokenizer.guard(text)
            assert tokenizer.decode(tokenizer.encode_guarded(before + guarded + after)) == before + kept + after
        assert tokenizer.encode_guarded(before + tokenizer.guard(text).strip() + after) == tokenizer.encode(
            before + text.strip() + after
        )


def test_no_id_stands_for_more_bytes_than_the_longest_token(tokenizer: Tokenizer) -> None:
    sizes = [len(tokenizer.token_bytes(index)) for index in range(tokenizer.vocab_size)]
    assert tokenizer.longest_token == max(sizes) > 10


def test_text_without_markers_is_encoded_the_same_guarded_or_not(tokenizer: Tokenizer) -> None:
    text = "The sky is blue, 東京 🙂"
    assert tokenizer.encode_guarded(tokenizer.guard(text)) == tokenizer.encode(text) == tokenizer.encode_plain(text)


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback"])
@pytest.mark.parametrize("text", TEXTS)
def test_decoding_agrees_with_the_tokenizers_package(kind: str, text: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(f"{kind}_folder")
    ours, theirs = Tokenizer.from_folder(folder), tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = theirs.encode(f"<|turn>{text}<turn|>", add_special_tokens=False).ids
    assert ours.encode(f"<|turn>{text}<turn|>") == ids
    for skip in (False, True):
        assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip)


def test_token_bytes_join_to_the_text(tokenizer: Tokenizer) -> None:
    text = "a 🙂東京"
    assert b"".join(map(tokenizer.token_bytes, tokenizer.encode(text))) == text.encode()


def test_ids_outside_the_vocabulary_stand_for_nothing(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("blue")
    assert tokenizer.decode([-1, *ids, tokenizer.vocab_size, 10**9]) == "blue"
    assert max(ids) < tokenizer.vocab_size
    assert tokenizer.token_bytes(-1) == b""


def test_incomplete_characters_decode_to_the_replacement_character(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("🙂")
    assert tokenizer.decode(ids[:-1]) == "\ufffd"


def test_lone_surrogates_become_the_replacement_character(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a\ufffdb"
    assert tokenizer.decode(tokenizer.encode("\ud83d\ude42")) == "🙂"


def test_an_unknown_token_is_named(tokenizer: Tokenizer) -> None:
    with pytest.raises(TokenizerError, match=r"no token '<\|nothing>'"):
        tokenizer.token_id("<|nothing>")


def test_all_missing_markers_are_named_in_one_error(
    train_byte_level: Callable[[list[str]], tokenizers.Tokenizer], tmp_path: Path
) -> None:
    present = [token for token in CHAT_TOKENS if token not in ("<|think|>", "<tool|>")]
    train_byte_level(present).save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.from_folder(tmp_path)
    tokenizer.require(present)
    with pytest.raises(TokenizerError) as raised:
        tokenizer.require()
    assert str(raised.value).endswith("<|think|>, <tool|>")


def test_an_empty_folder_is_refused_by_both_file_names(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError) as raised:
        Tokenizer.from_folder(tmp_path)
    for part in (str(tmp_path), "tokenizer.json", "tokenizer.model"):
        assert part in str(raised.value)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model"])
def test_a_corrupt_file_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x00 not a tokenizer {")
    with pytest.raises(TokenizerError, match=name):
        Tokenizer.from_folder(tmp_path)


def test_tokenizer_json_is_preferred(byte_level_folder: Path, sentencepiece_folder: Path, tmp_path: Path) -> None:
    for file in (byte_level_folder / "tokenizer.json", sentencepiece_folder / "tokenizer.model"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    expected = Tokenizer.from_folder(byte_level_folder)
    assert Tokenizer.from_folder(tmp_path).encode("Paris") == expected.encode("Paris")


def test_an_unsupported_decoder_is_named(byte_level_folder: Path, tmp_path: Path) -> None:
    written = json.loads((byte_level_folder / "tokenizer.json").read_text(encoding="utf-8"))
    written["decoder"] = {"type": "WordPiece", "prefix": "##", "cleanup": True}
    (tmp_path / "tokenizer.json").write_text(json.dumps(written), encoding="utf-8")
    with pytest.raises(TokenizerError, match="WordPiece"):
        Tokenizer.from_folder(tmp_path)


def test_a_sentencepiece_model_that_changes_spaces_is_refused(
    train_sentencepiece: Callable[..., bytes], tmp_path: Path
) -> None:
    (tmp_path / "tokenizer.model").write_bytes(train_sentencepiece(add_dummy_prefix=True))
    with pytest.raises(TokenizerError, match="add_dummy_prefix"):
        Tokenizer.from_folder(tmp_path)
