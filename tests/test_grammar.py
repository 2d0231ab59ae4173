"""Grammars over the demo's tokenizer: what they let through, and that all of that is what was asked for."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dgemma_jax.grammar import Grammar, GrammarError, Vocabulary
from dgemma_jax.prompt import answer_grammar as write
from dgemma_jax.prompt.parse import Content, Reasoning, ResponseParser, ToolCall
from dgemma_jax.prompt.tokenizer import Tokenizer

DEMO = Path(__file__).parents[1] / "checkpoints" / "demo"
TOKENIZER = Tokenizer.from_folder(DEMO)
ENDS = [TOKENIZER.token_id(name) for name in ("<eos>", "<turn|>", "<|tool_response>")]
VOCABULARY = Vocabulary(TOKENIZER, 1280, ENDS)
Q = '<|"|>'

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
WEATHER: dict[str, Any] = {
    "name": "get_weather",
    "parameters": {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "unit": {"enum": ["c", "f", 5, None, True]},
            "wind speed.max-$é": {"type": "boolean"},
            "Tags": {"type": "array", "items": {"type": "string"}},
        },
        "required": ["city"],
    },
}
PING = {"name": "ping"}
TREE = {
    "name": "plant.tree",
    "parameters": {
        "type": "object",
        "properties": {"root": {"$ref": "#/$defs/node"}, "any": {}, "size": {"anyOf": [{"type": "number"}, {}]}},
        "required": ["root"],
        "$defs": {
            "node": {
                "type": "object",
                "properties": {
                    "kids": {"type": "array", "items": {"$ref": "#/$defs/node"}},
                    "weight": {"type": ["number", "null"]},
                    "leaf": {"type": "boolean", "nullable": True},
                },
            }
        },
    },
}
FREE = {"name": "note", "parameters": {"type": "object"}}


def grammar(content: str | None = None, calls: str | None = None, thought: write.Thought = "none") -> Grammar:
    return VOCABULARY.grammar(write.whole(content, calls, thought))


def fits(grammar: Grammar, text: str) -> bool:
    """Whether the whole text, markers and all, may be an answer."""
    tokens = TOKENIZER.encode(text)
    return grammar.begin().fitting(tokens) == len(tokens)


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ('{"name": "Anna", "age": 31}<turn|>', True),
        ('{"name":"Anna","age":31}<turn|>', True),
        ('{\n  "name": "Anna",\n  "age": 31\n}<turn|>', True),
        ('{"name": "Anna", "age": 31}<eos>', True),
        ('{"name": "Anna", "age": "31"}<turn|>', False),
        ('{"name": "Anna"}<turn|>', False),
        ('{"name": "Anna", "age": 31, "x": 1}<turn|>', False),
        ('{"name": "Anna", "age": 31} is what I found<turn|>', False),
        ('Sure! {"name": "Anna", "age": 31}<turn|>', False),
        ("```json", False),
        ("{\n\n\n", False),  # else a model that is at a loss fills its answer with them
    ],
)
def test_json_is_held_to_its_schema(text: str, right: bool) -> None:
    assert fits(grammar(write.json_schema(PERSON)), text) == right


def test_an_answer_may_end_only_where_it_is_whole() -> None:
    place = grammar(write.json_schema(PERSON)).begin()
    for text, ends in (('{"name": "A", "age": 3', False), ("}", True)):
        place.accept(TOKENIZER.encode(text))
        assert all(place.allowed()[ENDS]) == ends == any(place.allowed()[ENDS])


@pytest.mark.parametrize("content", [write.choice(["Paris"]), write.json_schema(PERSON)])
def test_nothing_follows_an_end(content: str) -> None:
    """With a choice, llguidance has stopped before the end token comes; with JSON it has not."""
    text = "Paris" if content.startswith("(") else '{"name": "A", "age": 3}'
    tokens = [*TOKENIZER.encode(text), *ENDS]
    place = grammar(content).begin()
    assert place.fitting(tokens) == len(tokens) - len(ENDS) + 1
    place.accept(tokens[:-2])
    assert grammar(content).begin().fitting(ENDS) == 0


def test_a_choice_is_one_of_its_texts() -> None:
    made = grammar(write.choice(["yes", 'no "never"/\n', "cömment 🎉"]))
    for text in ("yes", 'no "never"/\n', "cömment 🎉"):
        assert fits(made, text + "<turn|>")
    assert not fits(made, "yes!<turn|>") and not fits(made, "no<turn|>")


@pytest.mark.parametrize(
    ("pattern", "text"),
    [("[0-9]{2}/[a-z]+", "12/ab"), (r"\d\/\d", "1/2"), (r"a\\/b", "a\\/b"), ("a\nb", "a\nb"), (r"[/]\n", "/\n")],
)
def test_a_regular_expression_is_matched_as_a_whole(pattern: str, text: str) -> None:
    made = grammar(write.regex(pattern))
    assert re.fullmatch(pattern, text)
    assert fits(made, text + "<turn|>") and not fits(made, text + "!<turn|>")


def test_only_an_answer_that_thinks_may_begin_with_a_thought() -> None:
    thought, answer = "<|channel>thought\nHm { 3<channel|>", "yes<turn|>"
    for mode, right in (("none", False), ("may_open", True)):
        assert fits(grammar(write.choice(["yes"]), thought=mode), thought + answer) == right  # type: ignore[arg-type]
        assert fits(grammar(write.choice(["yes"]), thought=mode), answer)  # type: ignore[arg-type]
    opened = grammar(write.choice(["yes"]), thought="is_open")
    assert fits(opened, "Hm { 3<channel|>" + answer) and not fits(opened, answer)


@pytest.mark.parametrize(
    ("call", "right"),
    [
        (f"call:get_weather{{city:{Q}Oslo{Q}}}", True),
        (f'call:get_weather{{city:{Q}a "b" {{,]{Q},days:-3,Tags:[{Q}x{Q},{Q}{Q}],unit:{Q}c{Q}}}', True),
        (f"call:get_weather{{city:{Q}a{Q},days:-3,unit:null}}", True),
        (f"call:get_weather{{Tags:[{Q}x{Q},{Q}{Q}],city:{Q}a{Q}}}", False),  # not in the template's order
        (f"call:get_weather{{city:{Q}a{Q},unit:5}}", True),
        (f"call:get_weather{{city:{Q}a{Q},unit:{Q}k{Q}}}", False),
        (f"call:get_weather{{city:{Q}a{Q},days:3.5}}", False),
        ("call:get_weather{days:3}", False),
        ("call:ping{}", True),
        ("call:ping{a:1}", False),
        ("call:plant.tree{root:{kids:[{weight:3.5e2},{}],leaf:null}}", True),
        (f"call:plant.tree{{any:[1,{{k:{Q}v{Q}}}],root:{{}},size:true}}", True),
        ("call:plant.tree{root:{kids:[3]}}", False),
        (f"call:note{{a:[1,{Q}x{Q},{{b:null}}]}}", True),
        ("call:other{}", False),
    ],
)
def test_a_call_is_held_to_the_schema_of_its_function(call: str, right: bool) -> None:
    made = grammar(calls=write.calls([WEATHER, PING, TREE, FREE], None))
    assert fits(made, f"<|tool_call>{call}<tool_call|><|tool_response>") == right


def test_there_are_as_many_calls_as_are_allowed() -> None:
    one = "<|tool_call>call:ping{}<tool_call|>"
    for most, right in ((1, False), (None, True)):
        made = grammar(calls=write.calls([PING], most))
        assert fits(made, one + "<turn|>") and fits(made, one * 2 + "<turn|>") == right
    assert not fits(grammar(calls=write.calls([PING], None)), "<turn|>")


def test_text_or_calls_where_both_are_asked_for() -> None:
    made = grammar(write.choice(["yes"]), write.calls([PING], 1), "may_open")
    assert fits(made, "yes<turn|>") and fits(made, "<|tool_call>call:ping{}<tool_call|><|tool_response>")
    assert not fits(made, "yes<|tool_call>call:ping{}<tool_call|><|tool_response>")


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("", True),
        ("Any text {\n you like.", True),
        ("<|tool_call>call:ping{}<tool_call|><|tool_call>call:ping{}<tool_call|>", True),
        ("Let me see.\n<|tool_call>call:ping{}<tool_call|>", True),
        ("<|tool_call>call:ping{}<tool_call|>So.", False),
        ("<|tool_call>call:ping{a:1}<tool_call|>", False),
        ("<|tool_call>call:other{}<tool_call|>", False),
        ("<|tool_call>", False),
        ("Hm <|channel>thought", False),
    ],
)
def test_calls_may_follow_any_text(answer: str, right: bool) -> None:
    made = grammar(write.ANY_TEXT, write.calls([PING], None), "may_open")
    for thought in ("", "<|channel>thought\nHm<channel|>"):
        assert fits(made, thought + answer + "<turn|>") == right


def walk(grammar: Grammar, rng: random.Random, most: int = 400) -> list[int]:
    """A random answer: mostly markers and short ways to the end where there are some, else anything allowed."""
    place, tokens = grammar.begin(), []
    special = np.array(sorted(TOKENIZER.special_ids))
    while len(tokens) < most and not (tokens and tokens[-1] in ENDS):
        allowed = np.flatnonzero(place.allowed())
        assert len(allowed), "there is always a way on"
        markers = np.intersect1d(allowed, special)
        token = int(rng.choice(markers if len(markers) and rng.random() < 0.4 else allowed))
        assert place.fitting([token]) == 1
        place.accept([token])
        tokens.append(token)
    return tokens


def parsed(tokens: list[int]) -> tuple[str, str, list[tuple[str, dict[str, Any]]]]:
    parser = ResponseParser(TOKENIZER)
    pieces = [*parser.push(tokens), *parser.finish()]
    thought = "".join(piece.text for piece in pieces if isinstance(piece, Reasoning))
    text = "".join(piece.text for piece in pieces if isinstance(piece, Content))
    return thought, text, [(p.name, json.loads(p.arguments)) for p in pieces if isinstance(p, ToolCall)]


@pytest.mark.parametrize("seed", range(15))
def test_whatever_is_let_through_is_read_as_calls_of_the_functions(seed: int) -> None:
    tokens = walk(
        grammar(calls=write.calls([WEATHER, PING, TREE, FREE], None), thought="may_open"), random.Random(seed)
    )
    assert tokens[-1] in ENDS, "these seeds come to an end"
    _, text, calls = parsed(tokens)
    assert calls and not text
    for name, arguments in calls:
        assert name in ("get_weather", "ping", "plant.tree", "note")
        if name == "get_weather":
            assert isinstance(arguments["city"], str) and set(arguments) <= {*WEATHER["parameters"]["properties"]}
            assert isinstance(arguments.get("days", 0), int)
            assert arguments.get("unit", "c") in ("c", "f", 5, None, True)
        assert name != "ping" or arguments == {}


@pytest.mark.parametrize("seed", range(10))
def test_whatever_is_let_through_is_json_of_the_schema(seed: int) -> None:
    tokens = walk(grammar(write.json_schema(PERSON), thought="may_open"), random.Random(seed))
    assert tokens[-1] in ENDS, "these seeds come to an end"
    found = json.loads(parsed(tokens)[1])
    assert list(found) == ["name", "age"] and isinstance(found["name"], str) and isinstance(found["age"], int)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"type": "strin"}, "Invalid type: strin"),
        ({"type": "array", "uniqueItems": True}, 'Unimplemented keys: ["uniqueItems"]'),
        ({"type": "string", "minLength": 5, "maxLength": 2}, "Unsatisfiable schema"),
        (
            {"allOf": [{"anyOf": [{"properties": {f"k{j}": {"const": i}}} for i in "abcdef"]} for j in range(8)]},
            "large",
        ),
        ("(a", "invalid regex"),
        ("a\\", "lexer error"),
    ],
)
def test_what_cannot_be_followed_is_said(content: Any, said: str) -> None:
    with pytest.raises(GrammarError, match=re.escape(said)) as caught:
        grammar(write.regex(content) if isinstance(content, str) else write.json_schema(content))
    assert "\n" not in str(caught.value) and not re.match(r"at |\d", str(caught.value))


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"properties": {"a": {"$ref": "#/$defs/b"}}}, "points to nothing"),
        ({"properties": {"a": {"$ref": "other.json"}}}, "into the schema itself"),
        ({"$ref": "#"}, "points to itself"),
        ({"properties": {"a": {"enum": "b"}}}, "`enum` must be a list"),
        ({"properties": ["a"]}, "`properties` must be an object"),
        ({"properties": {"a:b": {}}}, "cannot be written in a call"),
        ({"properties": {"": {}}}, "cannot be written in a call"),
    ],
)
def test_a_schema_of_arguments_that_makes_no_sense_is_refused(schema: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        write.calls([{"name": "f", "parameters": schema}], None)


def chain(length: int, name: str = "a") -> dict[str, Any]:
    """Objects that refer to one another."""
    links = {f"a{i}": {"type": "object", "properties": {name: {"$ref": f"#/$defs/a{i + 1}"}}} for i in range(length)}
    return {"$ref": "#/$defs/a0", "$defs": links | {f"a{length}": {"type": "string"}}}


def nested(levels: int) -> dict[str, Any]:
    return {"type": "array", "items": nested(levels - 1)} if levels else {"type": "string"}


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        (chain(1000), "nested more than"),
        (chain(1000, "definitions"), "nested more than"),  # as a name of a property it is nothing special
        (nested(3000 // 4), "recursion limit"),
        ({"enum": list(range(200_000))}, "more than 100000 values"),
        ({"$ref": "#anchor"}, "into the schema itself"),
        ({"type": "integer", "multipleOf": 9_999_999}, "multipleOf"),
        ({"items": {"multipleOf": 1e-9}}, "multipleOf"),
        ({"$ref": "#/$defs/a"}, "points to nothing"),
    ],
)
def test_a_schema_that_would_end_or_hold_up_the_process_is_refused(schema: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        grammar(write.json_schema(schema))


def test_schemas_of_a_sensible_size_are_followed() -> None:
    grammar(write.json_schema(chain(100)))
    grammar(write.json_schema({"type": "number", "multipleOf": 0.25}))
    many = {f"p{i}": {"type": "string"} for i in range(10)}
    functions = [{"name": f"f{i}", "parameters": {"type": "object", "properties": many}} for i in range(100)]
    grammar(calls=write.calls(functions, None))


@pytest.mark.parametrize("required", [False, True])
def test_functions_of_too_many_arguments_are_refused(required: bool) -> None:
    """More than the stack of llguidance holds."""
    names = [f"p{i}" for i in range(5000)]
    parameters = {"properties": dict.fromkeys(names, True), "required": names if required else []}
    with pytest.raises(ValueError, match="more than 2500 grammar rules"):
        write.calls([{"name": "f", "parameters": parameters}], None)


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"properties": {"a": {"$ref": []}}}, r"\$ref must be text, found \[\]"),
        ({"properties": {f"a{n}": {} for n in range(2501)}}, "more than 2500 grammar rules"),
    ],
)
def test_schemas_of_calls_that_cannot_be_written_are_refused(parameters: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        write.calls([{"name": "f", "parameters": {"type": "object", **parameters}}], None)


def test_a_required_name_that_is_no_text_is_no_name() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "null"}}, "required": [["a"], 1]}
    assert fits(
        grammar(calls=write.calls([{"name": "f", "parameters": schema}], None)), "<|tool_call>call:f{}<tool_call|>"
    )


def test_a_bool_is_no_divisor() -> None:
    with pytest.raises(GrammarError, match="multipleOf"):
        grammar(write.json_schema({"type": "integer", "multipleOf": True}))
