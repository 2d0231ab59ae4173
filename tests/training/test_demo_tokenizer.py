"""The demo tokenizer: fixed special ids, any text comes back, answers fit a canvas, the files are reproducible."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from dgemma_jax.prompt.template import ChatTemplate
from dgemma_jax.training import demo
from dgemma_jax.training.demo import capitals, facts, json_text
from dgemma_jax.training.demo.tokenizer import closed_words, texts

SHIPPED = Path(__file__).parents[2] / "checkpoints" / "demo"
CANVAS = 32


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    demo.write_tokenizer(folder)
    return folder


@pytest.fixture(scope="module", params=["written", "shipped"])
def tokenizer(request: pytest.FixtureRequest, written: Path) -> Tokenizer:
    """What the code writes today, and what the shipped weights were trained with."""
    folder = written if request.param == "written" else SHIPPED
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


SMALL = demo.train_tokenizer(["hello there", "the capital"] * 3, vocab_size=300, words=["capital", " capital"])


def ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids


def test_two_runs_write_the_same_bytes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("dgemma_jax.training.demo.tokenizer._SAMPLE", 2000)  # takes a fraction of the time
    folders = tmp_path / "one", tmp_path / "other"
    for folder in folders:
        demo.write_tokenizer(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        one, other = ((folder / name).read_bytes() for folder in folders)
        assert one == other


def test_special_tokens_have_the_first_ids_in_order(tokenizer: Tokenizer) -> None:
    assert tokenizer.get_vocab_size() == 1280
    assert sorted(tokenizer.get_vocab().values()) == list(range(1280))
    for expected, text in enumerate(demo.SPECIAL_TOKENS):
        assert tokenizer.token_to_id(text) == expected
        assert ids(tokenizer, f"x{text}x")[1] == expected
    assert demo.SPECIAL_TOKENS[:5] == ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")


def test_settings_name_the_special_tokens(written: Path) -> None:
    settings = json.loads((written / "tokenizer_config.json").read_text())
    assert settings == json.loads((SHIPPED / "tokenizer_config.json").read_text())
    assert settings["model_max_length"] == 2048
    assert [settings[f"{name}_token"] for name in ("pad", "eos", "bos")] == ["<pad>", "<eos>", "<bos>"]


@given(st.text())
def test_any_text_comes_back(text: str) -> None:
    assert SMALL.decode(ids(SMALL, text), skip_special_tokens=False) == text


def test_generated_text_comes_back(tokenizer: Tokenizer) -> None:
    for index in range(300):
        for text, _ in texts(demo.example("train", 5, index)):
            assert tokenizer.decode(ids(tokenizer, text)) == text


def test_answer_words_of_closed_sets_are_single_ordinary_tokens(tokenizer: Tokenizer) -> None:
    cities = [country.capital for country in capitals.COUNTRIES if " " not in country.capital]
    words = [*cities, *facts.DAYS, *facts.MONTHS, *json_text.COLOURS, *json_text.ANIMALS]
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    for word in {*closed_words(), *words, *(f" {word}" for word in words)}:
        assert len(ids(tokenizer, word)) == 1, word
        assert word not in special


def test_digits_stand_alone(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("age 2048").tokens[-4:] == ["2", "0", "4", "8"]


def test_a_name_is_split_alike_with_and_without_a_space_in_front(tokenizer: Tokenizer) -> None:
    for name in ("Rune", "Tramedun", "Agnes", "Zostichu", "bob"):
        assert ids(tokenizer, f" {name}") == ids(tokenizer, " ") + ids(tokenizer, name)


def test_an_answer_is_split_alike_alone_and_after_its_prompt(tokenizer: Tokenizer) -> None:
    template = ChatTemplate.from_folder(SHIPPED)
    for index in range(200):
        example = demo.example("train", 6, index)
        options = {"tools": example.tools, "enable_thinking": example.thinking}
        whole = template.render(example.messages, add_generation_prompt=False, **options)
        prompt = template.render(example.prompt, **options)
        assert ids(tokenizer, whole) == ids(tokenizer, prompt) + ids(tokenizer, whole.removeprefix(prompt))


def test_words_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="vocab_size 280 cannot hold 2 words"):
        demo.train_tokenizer([], vocab_size=280, words=["one", "two"])
    with pytest.raises(ValueError, match="'two words' cannot be one token"):
        demo.train_tokenizer([], words=["two words"])
