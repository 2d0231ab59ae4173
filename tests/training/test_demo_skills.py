"""Sums, lists, JSON and memory: the answers are true, the thoughts lead to them, and the test asks what is new."""

import json
import re
from functools import cache
from itertools import pairwise
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

import pytest

from dgemma_jax.prompt.tokenizer import Tokenizer
from dgemma_jax.training.demo import arithmetic, json_text, lists, memory, names, two_digits
from dgemma_jax.training.demo.example import Example, Split
from dgemma_jax.training.demo.wording import canonical

DEMO = Path(__file__).parents[2] / "checkpoints" / "demo"
FAMILIES = (arithmetic, two_digits, lists, json_text, memory)
SUMS = (arithmetic, two_digits)
SPLITS: tuple[Split, ...] = ("train", "test")
each_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.FAMILY)


@cache
def drawn(family: ModuleType, split: Split, count: int, *, seed: int = 0) -> list[Example]:
    """Every second example thinks."""
    rng = Random(seed)
    return [family.draw(rng, split, i % 2 == 1) for i in range(count)]


def both(family: ModuleType, count: int = 1000) -> list[Example]:
    return [example for split in SPLITS for example in drawn(family, split, count)]


def question(example: Example) -> str:
    text = example.prompt[-1]["content"]
    assert isinstance(text, str)
    return text


def answer(example: Example) -> str:
    return str(example.expected["content"])


def asked(example: Example) -> str:
    return "|".join(canonical(message["content"]) for message in example.prompt)


def plain(text: str) -> str:
    """A question as a problem in digits and signs: what an independent reader makes of it."""
    text = text.lower()
    for digit, word in enumerate(arithmetic.NUMBER_WORDS):
        text = re.sub(rf"\b{word}\b", str(digit), text)
    for spoken, sign in (("plus", "+"), ("minus|take away", "-"), (r"times|multiplied by|\*", "x")):
        text = re.sub(rf"(?<=\d) *({spoken}) *(?=\d)", f" {sign} ", text)
    for noun, sign in (("sum of|add", "+"), ("difference between", "-"), ("product of|multiply", "x")):
        text = re.sub(rf"\b({noun}) (\d+) (and|by) (\d+)", rf"\2 {sign} \4", text)
    text = re.sub(r"subtract (\d+) from (\d+)", r"\2 - \1", text)
    (problem,) = re.findall(r"(\d+) *([-+x]) *(\d+)", text)
    return " ".join(problem)


def value(text: str) -> int:
    """The value of "3 + 5 + 1", "7 x 8" or "12-5"."""
    assert re.fullmatch(r"[\d +x-]+", text)
    return int(eval(text.replace("x", "*")))


@each_family
def test_test_questions_are_never_trained_on(family: ModuleType) -> None:
    trained = {asked(example) for example in drawn(family, "train", 3000)}
    assert not trained & {asked(example) for example in drawn(family, "test", 300)}


@each_family
def test_there_are_many_different_test_questions(family: ModuleType) -> None:
    assert len({repr(example.prompt) for example in drawn(family, "test", 400)}) >= 250


@each_family
def test_a_seed_fixes_the_draws(family: ModuleType) -> None:
    assert drawn(family, "train", 50, seed=3) == drawn(family, "train", 50, seed=3)
    assert drawn(family, "train", 50, seed=3) != drawn(family, "train", 50, seed=4)


@each_family
def test_only_a_thinking_answer_has_a_thought(family: ModuleType) -> None:
    for i, example in enumerate(both(family)):
        assert example.family == family.FAMILY
        assert example.thinking == (i % 2 == 1) == bool(example.expected.get("reasoning"))
        assert not any("reasoning" in message for message in example.prompt)
        assert len(example.expected.get("reasoning", "").split()) <= 12


@each_family
def test_thinking_leaves_the_question_as_it_is(family: ModuleType) -> None:
    for seed in range(100):
        silent, thinking = (family.draw(Random(seed), "train", flag) for flag in (False, True))
        assert silent.prompt == thinking.prompt
        assert family is two_digits or answer(silent) == answer(thinking)


@each_family
def test_a_conversation_has_one_right_answer_and_one_thought(family: ModuleType) -> None:
    found: dict[tuple[str, bool], dict[str, Any]] = {}
    for example in both(family):
        assert found.setdefault((repr(example.prompt), example.thinking), example.expected) == example.expected


@each_family
def test_text_is_plain_ascii_and_trimmed(family: ModuleType) -> None:
    for message in (message for example in both(family) for message in example.messages):
        text = message["content"]
        assert text.isascii() and text.replace("\n", "").isprintable() and text == text.strip()


@pytest.mark.parametrize(
    ("family", "most_prompt", "most_answer"),
    [(arithmetic, 90, 12), (two_digits, 90, 36), (lists, 120, 200), (json_text, 180, 120), (memory, 420, 60)],
    ids=lambda argument: getattr(argument, "FAMILY", None),
)
def test_prompts_and_answers_are_short(family: ModuleType, most_prompt: int, most_answer: int) -> None:
    for example in both(family):
        assert sum(len(message["content"]) for message in example.prompt) <= most_prompt
        assert len(answer(example)) <= most_answer


@pytest.mark.parametrize("family", SUMS, ids=lambda family: family.FAMILY)
def test_every_sum_answers_its_question_and_is_true(family: ModuleType) -> None:
    for example in both(family):
        problem, result = answer(example).removesuffix(".").split(" = ")
        problem = problem.rpartition(", so ")[2]
        assert problem == plain(question(example))
        assert value(problem) == int(result)


def test_all_one_digit_problems_are_trained() -> None:
    assert len({answer(example) for example in drawn(arithmetic, "train", 6000)}) == 300


def test_the_thought_of_a_one_digit_problem_is_its_result() -> None:
    for example in both(arithmetic):
        if example.thinking:
            assert example.expected["reasoning"] + "." == answer(example).replace(" ", "")


@pytest.mark.parametrize(
    ("a", "sign", "b", "work"),
    [
        (34, "+", 58, "4+8=12,3+5+1=9"),
        (34, "+", 53, "4+3=7,3+5=8"),
        (34, "+", 8, "4+8=12,3+0+1=4"),
        (57, "+", 68, "7+8=15,5+6+1=12"),
        (82, "-", 35, "12-5=7,7-3=4"),
        (78, "-", 35, "8-5=3,7-3=4"),
        (38, "-", 35, "8-5=3,3-3=0"),
    ],
)
def test_two_digit_problems_are_worked_units_first(a: int, sign: str, b: int, work: str) -> None:
    assert two_digits.work(arithmetic.Problem(a, sign, b)) == work


def test_every_step_of_the_work_is_true_and_spells_the_result() -> None:
    for example in both(two_digits):
        work, _, sentence = answer(example).rpartition(", so ")
        work = example.expected["reasoning"] if example.thinking else work
        units, tens = work.split(",")
        for step in (units, tens):
            left, result = step.split("=")
            assert value(left) == int(result)
        result = int(sentence.removesuffix(".").split(" = ")[1])
        assert result == 10 * int(tens.split("=")[1]) + int(units.split("=")[1]) % 10


def test_no_pair_of_the_two_digit_test_is_trained_even_mirrored() -> None:
    def pairs(split: Split) -> set[str]:
        problems = (plain(question(example)).split() for example in drawn(two_digits, split, 5000))
        return {" ".join(sorted((a, b)) if sign == "+" else (a, sign, b)) for a, sign, b in problems}

    assert not pairs("train") & pairs("test")


def test_counting_goes_from_the_first_to_the_last_number_in_even_steps() -> None:
    counted = 0
    for example in both(lists):
        numbers = re.fullmatch(r"(?:\d+ )+\d+", answer(example))
        named = [int(number) for number in re.findall(r"\d+", re.sub(r"steps of \d+", "", question(example)))]
        if numbers is None or "multiples" in question(example):
            continue
        found = [int(number) for number in answer(example).split()]
        assert found[-1] == named[-1]
        assert len(named) == 1 or found[0] == named[0]
        (step,) = {after - before for before, after in pairwise(found)}
        said = re.search(r"twos|threes|fours|fives|tens|(?<=steps of )\d+", question(example))
        written = {"twos": 2, "threes": 3, "fours": 4, "fives": 5, "tens": 10}
        assert abs(step) == (1 if said is None else written.get(said.group()) or int(said.group()))
        assert len(named) == 2 or found[0] == step
        counted += 1
    assert counted > 200


def test_training_counts_in_more_steps_and_further_than_the_test() -> None:
    def counts(split: Split) -> list[tuple[int, int]]:
        answers = [answer(example) for example in drawn(lists, split, 3000)]
        found = [list(map(int, text.split())) for text in answers if re.match(r"\d+ \d+", text)]
        return [(abs(numbers[1] - numbers[0]), max(numbers)) for numbers in found]

    assert {step for step, _ in counts("test")} == {1, 2, 5, 10}
    assert len({step for step, _ in counts("train")}) == len(lists.PRACTICE_STEPS)
    assert max(last for _, last in counts("test")) <= 100 < 900 < max(last for _, last in counts("train"))


def test_tables_and_multiples_are_true() -> None:
    for example in both(lists):
        if "=" in answer(example):
            lines = [line.split(" = ") for line in answer(example).split("\n")]
            assert all(value(problem) == int(result) for problem, result in lines)
            *_, k = asked = re.findall(r"\d+", re.sub(r"\b(\w+)\b", _in_digits, question(example).lower()))
            count = asked[-2] if "multiples" in question(example).lower() else "10"
            assert [problem for problem, _ in lines] == [f"{k} x {n}" for n in range(1, int(count) + 1)]


def _in_digits(found: re.Match[str]) -> str:
    word = found.group()
    return str(arithmetic.NUMBER_WORDS.index(word)) if word in arithmetic.NUMBER_WORDS[2:] else word


def test_letters_are_neighbours_in_the_alphabet() -> None:
    answers = [answer(example) for example in both(lists)]
    spans = [text.split(", ") for text in answers if re.fullmatch(r"[A-Z](, [A-Z])+", text)]
    assert len(spans) > 50
    for span in spans:
        assert len({ord(after) - ord(before) for before, after in pairwise(span)} | {1, -1}) == 2
        assert len(set(span)) == len(span)


def test_long_lists_of_the_test_take_two_to_six_canvases() -> None:
    tokenizer, rng = Tokenizer.from_folder(DEMO), Random(0)
    answers = [answer(lists.draw_long(rng, "test", False)) for _ in range(1000)]
    canvases = [-(-(len(tokenizer.encode(text)) + 1) // 32) for text in answers]
    assert set(canvases) == {2, 3, 4, 5, 6}
    assert any(text.startswith("A, B") for text in answers) and any("=" in text for text in answers)


def test_in_the_test_something_stands_between_what_is_told_and_the_question() -> None:
    for example in drawn(memory, "test", 300):
        assert len(example.messages) >= 6
        assert "remember" not in answer(example), "the last turn asks back"


def test_json_parses_to_the_keys_and_values_of_the_question() -> None:
    for example in both(json_text):
        found = json.loads(answer(example))
        assert json.dumps(found) == answer(example)
        place = 0
        for part in re.findall(r"\w+", answer(example)):
            place = question(example).lower().index(part.lower(), place) + len(part)


def test_json_comes_flat_nested_as_a_list_and_with_a_list_in_it() -> None:
    shapes = set()
    for example in drawn(json_text, "test", 200):
        found = json.loads(answer(example))
        inner = found.values() if isinstance(found, dict) else ()
        shapes.add((type(found), dict in map(type, inner), list in map(type, inner)))
    assert shapes == {(list, False, False), (dict, False, False), (dict, True, False), (dict, False, True)}


def test_names_of_the_test_are_never_told_in_training() -> None:
    trained = [*drawn(json_text, "train", 3000), *drawn(memory, "train", 3000)]
    text = " ".join(message["content"] for example in trained for message in example.messages).lower()
    assert not {name.lower() for name in names.TEST_NAMES} & set(re.findall(r"[a-z]+", text))


def test_half_of_the_memory_test_copies_a_name_that_training_never_shows() -> None:
    found = drawn(memory, "test", 500)
    copied = [e for e in found if answer(e).startswith(("Your name is ", "Nice to meet you, "))]
    assert len(copied) > 0.5 * len(found)


def test_what_is_recalled_was_told_and_what_was_not_told_is_not_made_up() -> None:
    for example in both(memory):
        told = " ".join(message["content"] for message in example.prompt if message["role"] == "user")
        for subject in memory.SUBJECTS:
            if answer(example) == subject.unknown:
                replies = [message["content"] for message in example.prompt if message["role"] == "assistant"]
                assert not any(re.fullmatch(subject.reply.format(".*"), reply) for reply in replies)
                break
        else:
            for subject in memory.SUBJECTS:
                if recalled := re.fullmatch(subject.recalled.format("(.*)"), answer(example)):
                    assert recalled[1] in told


def test_a_conversation_has_at_most_four_turns_and_three_things_told() -> None:
    for example in both(memory):
        roles = [message["role"] for message in example.messages]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert len(roles) <= 8
