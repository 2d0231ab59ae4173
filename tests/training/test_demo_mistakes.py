"""Mistakes that training starts canvases from: wrong answers such as the model may give, in training alone."""

from pathlib import Path
from random import Random
from types import ModuleType

import pytest

from dgemma_jax.prompt.template import ChatTemplate
from dgemma_jax.prompt.tokenizer import Tokenizer
from dgemma_jax.training.demo import arithmetic, json_text, lists, system, tool_call, tool_no_call, tool_two_calls
from dgemma_jax.training.demo.architecture import demo_config
from dgemma_jax.training.demo.example import Example, Split
from dgemma_jax.training.demo.mistakes import slipped
from dgemma_jax.training.demo.render import demo_row
from dgemma_jax.training.demo.series import Series
from dgemma_jax.training.demo.tool_no_call import DECLINED

DEMO = Path(__file__).parents[2] / "checkpoints" / "demo"
MISTAKING = [json_text, lists, tool_call, tool_no_call, tool_two_calls]
each_family = pytest.mark.parametrize("family", MISTAKING, ids=lambda family: family.FAMILY)


def drawn(family: ModuleType, split: Split, count: int) -> list[Example]:
    rng = Random(0)
    return [family.draw(rng, split, i % 2 == 1) for i in range(count)]


@each_family
def test_half_of_training_comes_with_a_mistake_and_no_test_does(family: ModuleType) -> None:
    wrong = [example for example in drawn(family, "train", 1000) if example.mistake is not None]
    assert 400 < len(wrong) < 700
    for example in wrong:
        assert example.mistake is not None
        assert ("reasoning" in example.mistake) == example.thinking
    assert all(example.mistake is None for example in drawn(family, "test", 300))


@pytest.mark.parametrize("family", [*MISTAKING, system], ids=lambda family: family.FAMILY)
def test_mistakes_are_wrong(family: ModuleType) -> None:
    wrong = [example for example in drawn(family, "train", 1000) if example.mistake is not None]
    assert not [example for example in wrong if example.mistake == example.expected]


def test_lists_go_on_in_their_steps_and_never_below_zero() -> None:
    up, down = Series.numbers(20, 30, 5), Series.numbers(9, 3, -3)
    assert (str(up), list(up.after[:2]), list(up.before)) == ("20 25 30", ["35", "40"], ["15", "10", "5", "0"])
    assert (str(down), list(down.after), list(down.before[:2])) == ("9 6 3", ["0"], ["12", "15"])
    table, part = Series.table(3, 2), Series.part("ABCDE", 1, 2)
    assert (str(table), table.after[0]) == ("3 x 1 = 3\n3 x 2 = 6", "3 x 3 = 9")
    assert (str(part), "".join(part.after), "".join(part.before)) == ("B, C", "DE", "A")


def test_a_mistaken_list_is_too_long_or_too_short_goes_the_other_way_or_has_a_part_twice() -> None:
    series, rng = Series.numbers(38, 26, -1), Random(0)
    found = {series.mistake(rng) for _ in range(1000)}
    assert str(series) + " 25 24" in found
    assert str(series) + " 25 24 26" in found, "the last is said all the same"
    assert "38 37 36" in found
    assert any(text.startswith("38 39 40 41") for text in found)
    assert any("35 34 35 34" in text for text in found)
    assert any("38 37 30 29" in text for text in found)


def test_a_mistaken_call_is_declined_twice_of_another_tool_or_has_other_names_and_values() -> None:
    kinds: dict[str, int] = {}
    for example in drawn(tool_call, "train", 2000):
        if example.mistake is None:
            continue
        (right,) = (made["function"] for made in example.expected["tool_calls"])
        made = [call["function"] for call in example.mistake.get("tool_calls", ())]
        if not made:
            assert example.mistake["content"] == DECLINED
            kind = "declined"
        elif len(made) == 2:
            kind = "twice"
        elif made[0]["name"] != right["name"]:
            kind = "another name"
        else:
            kind = "fewer" if made[0]["arguments"].keys() < right["arguments"].keys() else "other values"
        kinds[kind] = kinds.get(kind, 0) + 1
    assert min(kinds[kind] for kind in ("declined", "twice", "another name", "fewer", "other values")) > 20


def test_of_two_calls_a_mistake_makes_one_the_same_twice_the_other_first_or_one_with_a_slip() -> None:
    kinds: dict[str, int] = {}
    for example in drawn(tool_two_calls, "train", 1000):
        if example.mistake is None:
            continue
        right, made = ([call["function"] for call in m["tool_calls"]] for m in (example.expected, example.mistake))
        if len(made) == 1:
            kind = "one" if made[0] in right else "another"
        elif made[0] == made[1]:
            kind = "the same twice"
        elif made == right[::-1]:
            kind = "the other first"
        else:
            kind = "a slip" if (made[0] == right[0]) != (made[1] == right[1]) else "another"
        kinds[kind] = kinds.get(kind, 0) + 1
    assert kinds.pop("another", 0) < 0.05 * sum(kinds.values())
    assert min(kinds[kind] for kind in ("one", "the same twice", "the other first", "a slip")) > 20


def test_a_slip_misspells_a_word_takes_one_for_another_or_gets_a_mark_or_the_end_wrong() -> None:
    rng, text = Random(0), '{"city": "Rome", "age": 7}'
    found = {slipped(rng, text) for _ in range(5000)}
    for wrong in (
        '{"city": "Rme", "age": 7}',
        '{"city": "Romeme", "age": 7}',
        '{"city": "age", "age": 7}',
        '{"city": "Rome",, "age": 7}',
        '{"city": "Rome, "age": 7}',
        '{"city": "Rome", "age": 7}7}',
        '{"city": "Rome", "age"',
    ):
        assert wrong in found


def test_what_is_to_be_in_upper_case_has_slips_in_upper_case() -> None:
    wrong = [example for example in drawn(system, "train", 400) if example.mistake is not None]
    assert len(wrong) > 60
    for example in wrong:
        assert example.mistake is not None
        assert example.mistake["content"] == example.mistake["content"].upper()


def test_where_no_tool_fits_the_mistake_is_mostly_a_call_of_a_declared_one() -> None:
    wrong = [example for example in drawn(tool_no_call, "train", 1000) if example.mistake is not None]
    called = 0
    for example in wrong:
        assert example.mistake is not None
        for made in example.mistake.get("tool_calls", ()):
            called += 1
            assert made["function"]["name"] in {tool["function"]["name"] for tool in example.tools or ()}
    assert called > 0.7 * len(wrong)


def test_a_row_holds_the_mistake_behind_the_same_prompt() -> None:
    tokenizer, template = Tokenizer.from_folder(DEMO), ChatTemplate.from_folder(DEMO)
    wrong = next(example for example in drawn(lists, "train", 20) if example.mistake and not example.thinking)
    row = demo_row(wrong, tokenizer, template, demo_config(tokenizer))
    assert wrong.mistake is not None
    assert tokenizer.decode(row.mistake or ()) == wrong.mistake["content"] + "<turn|>"
    assert tokenizer.decode(row.answer) == wrong.expected["content"] + "<turn|>"
    right = drawn(arithmetic, "train", 1)[0]
    plain = demo_row(right, tokenizer, template, demo_config(tokenizer))
    assert plain.mistake == plain.answer
