"""The generator keeps its promises: seeded, true, plainly answered, and without test questions in training."""

import json
import re
from collections.abc import Callable
from itertools import islice
from random import Random

import pytest

from dgemma_jax.training import demo
from dgemma_jax.training.demo import arithmetic, capitals, facts, greetings, identity, names
from dgemma_jax.training.demo.wording import POLITE, Wordings, held_out, vary

FAMILIES = sorted(demo.FAMILIES)


def asked(example: demo.Example) -> str:
    """The conversation up to the answer, without case, spaces and marks."""
    words = "|".join(message["role"][0] + message["content"] for message in example.prompt)
    return re.sub(r"[\s.,?!]", "", words.lower())


@pytest.fixture(scope="module")
def train() -> list[demo.Example]:
    return list(islice(demo.examples("train", 7), 20_000))


def test_a_seed_fixes_the_stream_and_another_seed_changes_it() -> None:
    def first(split: demo.Split, seed: int) -> list[demo.Example]:
        return list(islice(demo.examples(split, seed), 200))

    assert first("train", 1) == first("train", 1)
    assert first("train", 1) != first("train", 2)
    assert first("train", 1) != first("test", 1)


def test_the_mix_has_every_family_in_its_share(train: list[demo.Example]) -> None:
    whole = sum(family.share for family in demo.FAMILIES.values())
    for name, family in demo.FAMILIES.items():
        share = sum(example.family == name for example in train) / len(train)
        assert share == pytest.approx(family.share / whole, abs=0.015)


@pytest.mark.parametrize("family", FAMILIES)
def test_test_examples_are_different_seeded_and_of_the_family(family: str) -> None:
    found = demo.test_examples(family, 200, seed=3)
    assert found == demo.test_examples(family, 200, seed=3)
    assert len({repr(example.prompt) for example in found}) == 200
    assert {example.family for example in found} == {family}


def test_asking_for_more_test_examples_than_there_are_says_how_many_were_found() -> None:
    with pytest.raises(ValueError, match=r"greetings: wanted 5000 different test examples, found only \d+"):
        demo.test_examples("greetings", 5000, seed=0)


def test_no_test_conversation_is_trained_on(train: list[demo.Example]) -> None:
    trained = {asked(example) for example in train}
    tested = {asked(example) for family in FAMILIES for example in demo.test_examples(family, 200, seed=0)}
    assert not trained & tested


def test_a_conversation_has_one_right_answer(train: list[demo.Example]) -> None:
    answers: dict[str, str] = {}
    for example in (*train, *islice(demo.examples("test", 0), 5000)):
        assert answers.setdefault(asked(example), example.expected).lower() == example.expected.lower()
        assert answers.setdefault(repr(example.prompt), example.expected) == example.expected


def test_roles_alternate_and_the_assistant_has_the_last_word(train: list[demo.Example]) -> None:
    for example in train:
        roles = [message["role"] for message in example.messages if message["role"] != "system"]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert len(roles) <= 6
        assert example.expected == example.messages[-1]["content"]


def test_text_is_plain_ascii_and_trimmed(train: list[demo.Example]) -> None:
    for message in (message for example in train for message in example.messages):
        text = message["content"]
        assert text and text.isascii() and text.isprintable() and text == text.strip()


@pytest.mark.parametrize(
    "question", ["What is the capital of France?", "Hello!", "Hi", "Who are you?", "What can you do?"]
)
def test_the_first_things_people_ask_are_trained_on_word_for_word(question: str, train: list[demo.Example]) -> None:
    assert any(example.prompt == [{"role": "user", "content": question}] for example in train)


def test_every_family_asks_in_ten_wordings_or_more(train: list[demo.Example]) -> None:
    for family in FAMILIES:
        openings = {" ".join(e.prompt[-1]["content"].split()[:2]) for e in train if e.family == family and e.prompt}
        assert len(openings) >= 10


@pytest.mark.parametrize("split", ["train", "test"])
def test_json_answers_parse_and_hold_exactly_the_values_asked_for(split: demo.Split) -> None:
    rng = Random(0)
    for _ in range(1000):
        example = demo.FAMILIES["json_text"].draw(rng, split)
        value = json.loads(example.expected)
        assert json.dumps(value) == example.expected
        question = example.prompt[0]["content"]
        for part in value if isinstance(value, list) else [*value, *value.values()]:
            assert str(part) in question


def test_arithmetic_answers_are_right() -> None:
    rng = Random(0)
    for split in ("train", "test"):
        for _ in range(500):
            found = re.fullmatch(r"(\d) ([+-]) (\d) = (-?\d+)\.", demo.FAMILIES["arithmetic"].draw(rng, split).expected)
            assert found
            a, sign, b, result = found.groups()
            assert int(result) == (int(a) + int(b) if sign == "+" else int(a) - int(b))


def test_every_problem_is_trained_in_wordings_that_the_test_does_not_use() -> None:
    drawn = {arithmetic.draw(Random(seed), "train").expected for seed in range(3000)}
    assert len(drawn) == 200
    assert "What is {a} {sign} {b}?" in arithmetic.SUM.train
    for wordings in (arithmetic.SUM, arithmetic.DIFFERENCE):
        assert not set(wordings.train) & set(wordings.test)


def test_held_out_names_never_occur_in_training(train: list[demo.Example]) -> None:
    assert not set(names.TRAIN_NAMES) & set(names.TEST_NAMES)
    text = " ".join(message["content"] for example in train for message in example.messages).lower()
    assert not {name.lower() for name in names.TEST_NAMES} & set(re.findall(r"[a-z]+", text))


def test_holding_out_is_a_fixed_property_of_the_text_at_about_the_asked_rate() -> None:
    keys = [f"key {i}" for i in range(5000)]
    assert sum(held_out(key, 10) for key in keys) / len(keys) == pytest.approx(0.1, abs=0.02)
    assert [held_out(key, 10) for key in keys[:12]] == [held_out(key, 10) for key in keys[:12]]


def _all_wordings() -> list[Wordings]:
    fixed = [wordings for _, wordings in (*greetings.GREETINGS, *identity.TOPICS)]
    country = [capitals.CAPITAL_OF, capitals.COUNTRY_OF, capitals.IS_CAPITAL]
    return fixed + country + [group.wordings for group in facts.GROUPS]


def test_every_table_of_wordings_has_test_wordings_that_are_not_trained() -> None:
    for wordings in _all_wordings():
        assert wordings.test
        assert not {w.lower() for w in wordings.train} & {w.lower() for w in wordings.test}


@pytest.mark.parametrize("change", POLITE)
def test_surface_changes_keep_fields_and_the_end_tidy(change: Callable[[Random, str], str]) -> None:
    for seed in range(20):
        for text in ("What is {a}?", "Write JSON with {a}.", "{a}={a}=?", "I am {a}!"):
            changed = change(Random(seed), text)
            assert changed.count("{a}") == text.count("{a}")
            assert not re.search(r"[.,=] *,|jSON|\.\.", changed)


def test_vary_leaves_half_of_the_texts_as_they_are() -> None:
    rng = Random(0)
    same = sum(vary(rng, "What is the capital of Peru?") == "What is the capital of Peru?" for _ in range(1000))
    assert 400 < same < 600
