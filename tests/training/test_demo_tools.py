"""Tool conversations keep their promises: valid calls, results said as they are, nothing tested that was trained."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from dgemma_jax.prompt.parse import Content, Reasoning, ResponseParser, ToolCall, opens_thought
from dgemma_jax.prompt.template import ChatTemplate
from dgemma_jax.prompt.tokenizer import Tokenizer
from dgemma_jax.training.demo import tool_call, tool_no_call, tool_result, tool_two_calls
from dgemma_jax.training.demo.example import Example, Split
from dgemma_jax.training.demo.tool_words import NOUNS, ORDINARY_WORDS

DEMO = Path(__file__).parents[2] / "checkpoints" / "demo"
FAMILIES = [tool_call, tool_two_calls, tool_result, tool_no_call]
CALLING = [tool_call, tool_two_calls, tool_result]
SPLITS: tuple[Split, Split] = ("train", "test")
TYPES = {"string": str, "integer": int, "boolean": bool}

every_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.FAMILY)
calling_family = pytest.mark.parametrize("family", CALLING, ids=lambda family: family.FAMILY)


def drawn(family: Any, split: Split, count: int, seed: int = 0) -> list[Example]:
    """Examples of the family, every second one with thinking."""
    rng = Random(f"{split} {seed}")
    draw: Callable[[Random, Split, bool], Example] = family.draw
    return [draw(rng, split, number % 2 == 1) for number in range(count)]


def functions(example: Example) -> dict[str, dict[str, Any]]:
    return {tool["function"]["name"]: tool["function"] for tool in example.tools or ()}


def calls(example: Example) -> list[dict[str, Any]]:
    return [made["function"] for message in example.messages for made in message.get("tool_calls", ())]


def question(example: Example) -> str:
    return example.messages[0]["content"]


@every_family
def test_a_seed_fixes_what_is_drawn(family: Any) -> None:
    assert drawn(family, "train", 100, seed=1) == drawn(family, "train", 100, seed=1)
    assert drawn(family, "train", 100, seed=1) != drawn(family, "train", 100, seed=2)


@every_family
def test_there_are_many_different_test_prompts_and_none_is_trained_on(family: Any) -> None:
    trained = {question(example).lower() for example in drawn(family, "train", 3000)}
    tested = {question(example).lower() for example in drawn(family, "test", 330)}
    assert len(tested) >= 250
    assert not trained & tested


@calling_family
def test_no_name_that_the_test_calls_is_called_in_training(family: Any) -> None:
    trained, tested = (
        {made["name"] for example in drawn(family, split, count) for made in calls(example)}
        for split, count in (("train", 3000), ("test", 300))
    )
    assert not trained & tested


@calling_family
def test_half_of_the_test_calls_have_a_noun_that_is_never_trained(family: Any) -> None:
    def nouns(made: dict[str, Any]) -> str:
        return made["name"].split("_")[-1]

    trained = {name.split("_")[-1] for other in FAMILIES for e in drawn(other, "train", 2000) for name in functions(e)}
    tested = [nouns(made) for example in drawn(family, "test", 300) for made in calls(example)]
    assert sum(noun not in trained for noun in tested) / len(tested) >= 0.5


@calling_family
@pytest.mark.parametrize("split", SPLITS)
def test_calls_fit_the_declared_schema_and_copy_from_the_question(family: Any, split: Split) -> None:
    for example in drawn(family, split, 600):
        for made in calls(example):
            schema = functions(example)[made["name"]]["parameters"]
            assert set(schema.get("required", ())) <= made["arguments"].keys() <= schema["properties"].keys()
            assert list(made["arguments"]) == sorted(made["arguments"])
            for name, value in made["arguments"].items():
                assert type(value) is TYPES[schema["properties"][name]["type"]]
                assert (str(value).lower() if value in (True, False) else str(value)) in question(example)


@pytest.mark.parametrize("split", SPLITS)
def test_two_calls_stand_in_the_order_asked(split: Split) -> None:
    for example in drawn(tool_two_calls, split, 600):
        first, second = calls(example)
        assert first != second
        asked = question(example).lower()
        if first["name"] != second["name"]:
            places = [re.search(rf"\b(the|an?|my) {f['name'].split('_')[-1]}\b", asked) for f in (first, second)]
            assert places[0] and places[1] and places[0].start() < places[1].start()
        else:
            before, after = (str(*made["arguments"].values()).lower() for made in (first, second))
            assert asked.index(before) < asked.rindex(after)


@every_family
@pytest.mark.parametrize("split", SPLITS)
def test_tools_have_different_names_and_their_number_is_as_asked(family: Any, split: Split) -> None:
    examples = drawn(family, split, 1000)
    counts = [len(example.tools or ()) for example in examples]
    assert all(len(functions(example)) == count for example, count in zip(examples, counts, strict=True))
    assert set(counts) <= {1, 2, 3, 4}
    if family in (tool_call, tool_no_call):
        for count, share in ((1, 0.35), (2, 0.35), (3, 0.15), (4, 0.15)):
            assert counts.count(count) / len(counts) == pytest.approx(share, abs=0.06)


def test_a_tool_that_is_not_meant_often_has_a_name_that_is_only_similar() -> None:
    """As far as training goes: it shares the verb, and one syllable of a made-up noun."""
    similar = 0
    for example in drawn(tool_call, "train", 1000):
        verb, *_, noun = calls(example)[0]["name"].split("_")
        others = [name.split("_") for name in functions(example) if name != calls(example)[0]["name"]]
        nouns = [other[-1] for other in others if other[0] == verb and noun not in NOUNS]
        similar += any(other[:2] == noun[:2] or other[-2:] == noun[-2:] for other in nouns)
    assert similar > 50


def test_training_copies_words_and_numbers_of_more_forms_than_the_test() -> None:
    def values(split: Split, kind: type) -> list[Any]:
        made = [made for example in drawn(tool_call, split, 2000) for made in calls(example)]
        return [value for each in made for value in each["arguments"].values() if type(value) is kind]

    def nouns(split: Split) -> set[str]:
        made = {made["name"].split("_")[-1] for example in drawn(tool_call, split, 2000) for made in calls(example)}
        return {noun for noun in made - set(NOUNS) if noun[0] in "aeiou" or len(noun) > 8}

    assert max(values("test", int)) < 2050
    assert sum(value > 9999 for value in values("train", int)) > 20
    assert not nouns("test") and len(nouns("train")) > 100


def said(content: str) -> str:
    """What the answer has to say of a tool's result."""
    if not content.startswith("{"):
        return f"Result: {content.removesuffix('.')}."
    fields = json.loads(content)
    if "error" in fields:
        return f"The tool failed: {fields['error']}."
    first, *rest = [f"the {name} is {value}" for name, value in fields.items()]
    if rest:
        first = f"{', '.join([first, *rest[:-1]])} and {rest[-1]}"
    return f"T{first[1:]}."


@pytest.mark.parametrize("split", SPLITS)
def test_answers_say_the_results_in_their_order(split: Split) -> None:
    for example in drawn(tool_result, split, 600):
        results = [message for message in example.messages if message["role"] == "tool"]
        assert [result["tool_call_id"] for result in results] == [f"call_{number}" for number in range(len(results))]
        assert len(results) == len(calls(example))
        assert example.expected["content"] == " ".join(said(result["content"]) for result in results)


def test_test_results_have_values_that_are_never_trained() -> None:
    def contents(split: Split, count: int) -> set[str]:
        return {m["content"] for e in drawn(tool_result, split, count) for m in e.messages if m["role"] == "tool"}

    assert not contents("train", 3000) & contents("test", 300)


@pytest.mark.parametrize("split", SPLITS)
def test_a_request_is_declined_only_when_no_tool_has_its_noun(split: Split) -> None:
    examples = drawn(tool_no_call, split, 1000)
    for example in examples:
        words = re.findall(r"[a-z]+", question(example).lower())
        assert not {name.split("_")[-1] for name in functions(example)} & set(words)
        assert not calls(example) and example.expected["content"]
    declined = sum(example.expected["content"] == tool_no_call.DECLINED for example in examples)
    assert declined / len(examples) == pytest.approx(1 - tool_no_call.ORDINARY[split], abs=0.06)


def test_values_never_name_a_tool() -> None:
    assert not set(NOUNS) & set(ORDINARY_WORDS)


@every_family
def test_thinking_and_only_thinking_gives_a_thought(family: Any) -> None:
    for split in SPLITS:
        for number, example in enumerate(drawn(family, split, 200)):
            assert example.family == family.FAMILY
            assert example.thinking == (number % 2 == 1)
            assert ("reasoning" in example.expected) == example.thinking
            assert not any("reasoning" in message for message in example.prompt)
            if example.thinking:
                assert 3 <= len(example.expected["reasoning"].split()) <= 5


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_folder(DEMO)


@pytest.fixture(scope="module")
def template() -> ChatTemplate:
    return ChatTemplate.from_folder(DEMO)


@every_family
@pytest.mark.parametrize("split", SPLITS)
def test_what_the_model_writes_is_read_back(
    family: Any, split: Split, tokenizer: Tokenizer, template: ChatTemplate
) -> None:
    for example in drawn(family, split, 80):
        options: dict[str, Any] = {"tools": example.tools, "enable_thinking": example.thinking}
        prompt = template.render(example.prompt, **options)
        whole = template.render(example.messages, add_generation_prompt=False, **options)
        assert whole.startswith(prompt)
        ids = tokenizer.encode(whole.removeprefix(prompt))
        parser = ResponseParser(tokenizer, starts_in_thought=opens_thought(tokenizer, tokenizer.encode(prompt)))
        pieces = [*parser.push(ids), *parser.finish()]
        assert [piece.text for piece in pieces if isinstance(piece, Reasoning)] == (
            [example.expected["reasoning"]] if example.thinking else []
        )
        content = "".join(piece.text for piece in pieces if isinstance(piece, Content))
        assert content == (example.expected["content"] or "")
        assert [(p.name, json.loads(p.arguments)) for p in pieces if isinstance(p, ToolCall)] == [
            (made["function"]["name"], made["function"]["arguments"]) for made in example.expected.get("tool_calls", ())
        ]


@every_family
def test_prompts_and_answers_are_short(family: Any, template: ChatTemplate) -> None:
    for example in drawn(family, "train", 300):
        prompt = template.render(example.prompt, tools=example.tools, enable_thinking=example.thinking)
        whole = template.render(
            example.messages, tools=example.tools, enable_thinking=example.thinking, add_generation_prompt=False
        )
        assert len(prompt) < 1300
        assert len(whole) - len(prompt) < 330


@every_family
def test_text_is_plain_ascii_and_trimmed(family: Any) -> None:
    for example in drawn(family, "train", 500):
        for message in example.messages:
            if text := message["content"]:
                assert text.isascii() and text.isprintable() and text == text.strip()
            assert "{0}" not in (message["content"] or "")
