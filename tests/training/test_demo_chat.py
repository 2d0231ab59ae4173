"""The conversational families: seeded, true, plainly answered, and without test questions in training."""

import re
from collections.abc import Callable, Iterator
from functools import cache
from random import Random

import pytest

from dgemma_jax.training.demo import capitals, facts, greetings, identity, names, outside, system
from dgemma_jax.training.demo.example import Example, Split
from dgemma_jax.training.demo.phrases import PHRASES
from dgemma_jax.training.demo.wording import Question, canonical, draw_split, held_out, vary

FAMILIES = (capitals, facts, greetings, identity, outside, system)
every_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.FAMILY)


@cache
def drawn(family, split: Split, count: int, thinking: bool = False) -> tuple[Example, ...]:
    rng = Random(11)
    return tuple(family.draw(rng, split, thinking) for _ in range(count))


def asked(example: Example) -> str:
    return "|".join(canonical(message["content"]) for message in example.prompt)


@every_family
def test_a_seed_fixes_the_draws_and_another_seed_changes_them(family) -> None:
    def first(seed: int) -> list[Example]:
        rng = Random(seed)
        return [family.draw(rng, "train", seed % 2 == 0) for _ in range(50)]

    assert first(1) == first(1)
    assert first(1) != first(3)


@every_family
def test_no_test_question_is_trained_on(family) -> None:
    trained = {asked(example) for example in drawn(family, "train", 3000)}
    assert not trained & {asked(example) for example in drawn(family, "test", 300)}


@every_family
def test_there_are_enough_different_test_prompts(family) -> None:
    assert len({asked(example) for example in drawn(family, "test", 3000)}) >= 250


@every_family
def test_the_answer_has_a_short_thought_exactly_when_thinking(family) -> None:
    for thinking in (False, True):
        for example in drawn(family, "train", 500, thinking):
            assert example.thinking is thinking
            assert ("reasoning" in example.expected) is thinking
            assert len(example.expected.get("reasoning", "").split()) <= 10


@every_family
def test_thinking_changes_no_answer(family) -> None:
    for plain, thought in zip(drawn(family, "train", 300), drawn(family, "train", 300, True), strict=True):
        assert plain.prompt == thought.prompt
        assert plain.expected["content"] == thought.expected["content"]


def test_a_conversation_has_one_right_answer_and_one_thought() -> None:
    known: dict[str, tuple[str, str]] = {}
    for family in FAMILIES:
        for example in (*drawn(family, "train", 3000, True), *drawn(family, "test", 300, True)):
            found = example.expected["content"], example.expected["reasoning"]
            assert known.setdefault(asked(example), found) == found, example


@every_family
def test_prompts_and_answers_are_short_and_trimmed(family) -> None:
    for example in drawn(family, "train", 2000):
        for message in example.messages:
            text = message["content"]
            assert text and text == text.strip() and text.isprintable()
            assert not re.search(r"[{}]|[.,=] *,|\?\.|\.\.|, [.?!]|  ", text), text
        assert len(example.prompt[-1]["content"].split()) <= 26
        assert len(example.expected["content"].split()) <= 24


@pytest.mark.parametrize(
    ("family", "first"),
    [
        (greetings, ("Hello!", "Hi", "Hi!", "Hello", "Hey", "Thanks!", "Thank you!", "Bye!", "How are you?")),
        (identity, ("Who are you?", "What can you do?", "Who made you?", "What is your name?", "What is DGemma?")),
        (capitals, ("What is the capital of France?", "What is the capital of Germany?")),
    ],
    ids=("greetings", "identity", "capitals"),
)
def test_the_first_things_people_ask_are_trained_on_word_for_word(family, first: tuple[str, ...]) -> None:
    trained = {example.prompt[0]["content"] for example in drawn(family, "train", 10_000)}
    assert not set(first) - trained


@every_family
def test_questions_begin_in_many_ways(family) -> None:
    openings = {" ".join(e.prompt[-1]["content"].lower().split()[:2]) for e in drawn(family, "train", 3000)}
    assert len(openings) >= 60


def test_held_out_names_never_occur_in_training() -> None:
    assert not set(names.TRAIN_NAMES) & set(names.TEST_NAMES)
    test_names = {name.lower() for name in names.TEST_NAMES}
    for family in FAMILIES:
        text = " ".join(message["content"] for e in drawn(family, "train", 3000) for message in e.messages)
        assert not test_names & set(re.findall(r"[a-z]+", text.lower()))


def test_made_up_names_have_mostly_two_syllables() -> None:
    rng = Random(0)
    made_up = {name for _ in range(2000) if (name := names.draw_name(rng, "train")) not in names.TRAIN_NAMES}
    syllables = [len(re.findall("[aeiou]+", name.lower())) for name in made_up]
    assert 0.1 < sum(count == 3 for count in syllables) / len(syllables) < 0.3


@pytest.mark.parametrize(
    ("country", "capital"),
    [("France", "Paris"), ("Norway", "Oslo"), ("Australia", "Canberra"), ("Canada", "Ottawa"), ("Turkey", "Ankara"),
     ("Brazil", "Brasilia"), ("Switzerland", "Bern"), ("the United States", "Washington"), ("Nigeria", "Abuja")],
)  # fmt: skip
def test_capitals_are_true(country: str, capital: str) -> None:
    (found,) = (c for c in capitals.COUNTRIES if c.name == country)
    assert found.capital == capital
    assert f"The capital of {country} is {capital}." in {
        example.expected["content"] for example in drawn(capitals, "train", 10_000)
    }


def _made(make: Callable[[Random], Question], count: int) -> Iterator[Question]:
    rng = Random(5)
    return (make(rng) for _ in range(count))


def test_yes_and_no_agree_with_the_thought() -> None:
    for question in _made(capitals.make, 5000):
        if question.one_word in ("Yes", "No"):
            capital = question.thought.removesuffix(".").partition(" is ")[2]
            assert (canonical(capital) in canonical(question.text)) is (question.one_word == "Yes")


def test_short_answers_are_words_of_the_long_ones() -> None:
    for make in (capitals.make, facts.make):
        for question in _made(make, 3000):
            if question.one_word is not None:
                assert " " not in question.one_word
                assert question.one_word.lower() in question.answer.lower()


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("What comes after Sunday?", "Monday comes after Sunday."),
        ("What month comes before January?", "December comes before January."),
        ("Which planet is the fourth from the Sun?", "Mars is the fourth planet from the Sun."),
        ("What is the opposite of cold?", "The opposite of cold is hot."),
        ("How many legs does a spider have?", "A spider has eight legs."),
    ],
)
def test_facts_are_true(question: str, answer: str) -> None:
    answers = {canonical(made.text): made.answer for made in _made(facts.make, 20_000)}
    assert answers[canonical(question)] == answer


def test_outside_answers_everything_alike_and_leaves_small_sums_to_arithmetic() -> None:
    for example in (*drawn(outside, "train", 3000), *drawn(outside, "test", 300)):
        assert example.expected["content"] == outside.ANSWER
        found = re.search(r"(\d+)(\D+)(\d+)", example.prompt[0]["content"])
        if found and not set("/d") & set(found[2]):
            most = max(int(found[1]), int(found[3]))
            assert most > (9 if re.search(r"\*|x|times|multiplied", found[2]) else 99)


def test_system_prompts_are_obeyed_in_the_wanted_shares() -> None:
    translations = {text for _, found in PHRASES for text in found}
    for split in ("train", "test"):
        kinds = {"upper": 0, "word": 0, "language": 0, "plain": 0}
        for example in drawn(system, split, 2000):
            prompt, answer = canonical(example.prompt[0]["content"]), example.expected["content"]
            if re.search("upper|capital|caps", prompt):
                assert answer == answer.upper()
                kinds["upper"] += 1
            elif "word" in prompt:
                assert " " not in answer
                kinds["word"] += 1
            elif re.search("french|german|spanish", prompt):
                assert answer in translations
                kinds["language"] += 1
            else:
                assert re.search("[a-z]|[0-9] =", answer)
                kinds["plain"] += 1
        shares = {kind: count / 2000 for kind, count in kinds.items()}
        wanted = {"upper": 0.3, "word": 0.3, "language": 0.2, "plain": 0.2}
        if split == "train":  # what takes longest to learn comes most often
            wanted = {"upper": 0.55, "word": 0.18, "language": 0.15, "plain": 0.12}
        assert shares == pytest.approx(wanted, abs=0.03)


def test_holding_out_is_a_fixed_property_of_the_text_at_about_the_asked_rate() -> None:
    keys = [f"key {i}" for i in range(5000)]
    assert sum(held_out(key, 10) for key in keys) / len(keys) == pytest.approx(0.1, abs=0.02)
    assert [held_out(key, 10) for key in keys[:12]] == [held_out(key, 10) for key in keys[:12]]


def test_a_split_with_nothing_to_draw_says_so() -> None:
    empty: Split = "test" if not held_out("only", 8) else "train"
    with pytest.raises(ValueError, match=f"nothing for the {empty} split"):
        draw_split(Random(0), empty, lambda rng: "only", str)


@pytest.mark.parametrize("text", ["What is {a}?", "Write JSON with {a}.", "{a}={a}=?", "I am {a}!", "{a} {sign} 3"])
@pytest.mark.parametrize("polite", [False, True])
def test_surface_changes_keep_fields_and_the_end_tidy(text: str, polite: bool) -> None:
    for seed in range(300):
        changed = vary(Random(seed), text, polite=polite)
        assert changed.count("{a}") == text.count("{a}")
        assert not re.search(r"[.,=] *,|jSON|\.\.|\?\.", changed)


def test_vary_leaves_about_a_third_of_the_texts_as_they_are() -> None:
    rng = Random(0)
    same = sum(vary(rng, "What is the capital of Peru?") == "What is the capital of Peru?" for _ in range(1000))
    assert 250 < same < 450
