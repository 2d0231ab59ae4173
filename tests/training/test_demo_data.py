"""What holds for every family of the demo's conversations: seeded, plainly answered, test questions never trained."""

import hashlib
import re
from collections import Counter
from functools import partial
from random import Random

import pytest

from dgemma_jax.training import demo
from dgemma_jax.training.demo import names
from dgemma_jax.training.demo.example import Clip, Medium, ask, user

FAMILIES = sorted(demo.FAMILIES)
COUNT = 8000


def pixels(medium: Medium) -> bytes:
    frames = medium.frames if isinstance(medium, Clip) else (medium,)
    return b"".join(frame.tobytes() for frame in frames)


def asked(example: demo.Example) -> str:
    """All that the model is given, without letter case, spaces and sentence marks."""
    words = repr((example.prompt, example.tools)).lower()
    shown = hashlib.blake2b(b"".join(map(pixels, example.media))).hexdigest() if example.media else ""
    return re.sub(r"[\s.,?!]", "", words) + shown


def texts(example: demo.Example) -> str:
    return " ".join(repr(message) for message in example.messages)


train_example = partial(demo.example, "train", 7)


@pytest.fixture(scope="module")
def train() -> list[demo.Example]:
    return [train_example(index) for index in range(COUNT)]


def test_seed_split_and_number_fix_an_example() -> None:
    def some(split: demo.Split, seed: int) -> list[str]:
        return [asked(demo.example(split, seed, index)) for index in range(100)]

    assert some("train", 1) == some("train", 1)
    assert some("train", 1) != some("train", 2)
    assert some("train", 1) != some("test", 1)


def test_the_mix_has_every_family_in_its_share(train: list[demo.Example]) -> None:
    whole = sum(family.share for family in demo.FAMILIES.values())
    drawn = Counter(example.family for example in train)
    for name, family in demo.FAMILIES.items():
        assert drawn[name] / COUNT == pytest.approx(family.share / whole, abs=0.015)


@pytest.mark.parametrize("family", FAMILIES)
def test_test_examples_are_different_seeded_and_of_the_family(family: str) -> None:
    found = demo.test_examples(family, 250, seed=3)
    assert list(map(asked, found)) == list(map(asked, demo.test_examples(family, 250, seed=3)))
    assert {example.family for example in found} == {family}


def test_asking_for_more_test_examples_than_there_are_says_how_many_were_found(monkeypatch) -> None:
    always = demo.Family(1, lambda rng, split, thinking: ask("greetings", "Hello!", "Hello!"))
    monkeypatch.setitem(demo.FAMILIES, "greetings", always)
    with pytest.raises(ValueError, match=r"greetings: wanted 2 different test examples, found only 1"):
        demo.test_examples("greetings", 2, seed=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_test_conversation_is_trained_on(family: str, train: list[demo.Example]) -> None:
    trained = {asked(example) for example in train if example.family == family}
    assert not trained & set(map(asked, demo.test_examples(family, 200, seed=0)))


def test_a_conversation_has_one_right_answer(train: list[demo.Example]) -> None:
    answers: dict[str, str] = {}
    tested = [example for family in FAMILIES for example in demo.test_examples(family, 200, seed=5)]
    for example in (*train, *tested):
        expected = repr([example.expected.get("content"), example.expected.get("tool_calls")]).lower()
        assert answers.setdefault(asked(example), expected) == expected, asked(example)


def test_thinking_shows_as_one_thought_and_only_in_the_answer(train: list[demo.Example]) -> None:
    for example in train:
        assert bool(example.expected.get("reasoning")) == example.thinking
        assert not any(message.get("reasoning") for message in example.prompt)
    share = sum(example.thinking for example in train) / COUNT
    assert 0.3 < share < 0.5


def test_the_assistant_has_the_last_word_after_a_user_or_a_tool(train: list[demo.Example]) -> None:
    for example in train:
        assert example.expected["role"] == "assistant"
        assert example.prompt[-1]["role"] in ("user", "tool")
        assert example.expected.get("content") or example.expected.get("tool_calls")


def test_media_are_those_that_the_messages_name(train: list[demo.Example]) -> None:
    for example in train:
        parts = [p for m in example.messages if isinstance(m.get("content"), list) for p in m["content"]]
        named = [part["type"] for part in parts if part["type"] != "text"]
        assert named == ["video" if isinstance(medium, Clip) else "image" for medium in example.media]


@pytest.mark.parametrize(
    ("family", "question"),
    [
        ("capitals", "What is the capital of France?"),
        ("greetings", "Hello!"),
        ("greetings", "Hi"),
        ("identity", "Who are you?"),
        ("identity", "What can you do?"),
    ],
)
def test_the_first_things_people_ask_are_trained_on_word_for_word(family: str, question: str) -> None:
    rng = Random(0)
    assert any(demo.FAMILIES[family].draw(rng, "train", False).prompt == [user(question)] for _ in range(10_000))


def test_held_out_names_never_occur_in_training(train: list[demo.Example]) -> None:
    assert not set(names.TRAIN_NAMES) & set(names.TEST_NAMES)
    words = set(re.findall(r"[a-z]+", " ".join(map(texts, train)).lower()))
    assert not {name.lower() for name in names.TEST_NAMES} & words
