"""An answer is taken apart the same way however it is cut, and no sequence of ids is too strange for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from dgemma_jax.prompt.parse import Content, Piece, Reasoning, ResponseParser, ToolCall, opens_thought
from dgemma_jax.prompt.tokenizer import CHAT_TOKENS, Tokenizer, TokenizerError

Q = '<|"|>'


def joined(pieces: list[Piece]) -> list[Piece]:
    """Neighbouring text of one kind as one piece."""
    result: list[Piece] = []
    for piece in pieces:
        last = result[-1] if result else None
        if isinstance(piece, Reasoning | Content) and isinstance(last, type(piece)):
            result[-1] = type(piece)(last.text + piece.text)
        else:
            result.append(piece)
    return result


def parse_chunks(tokenizer: Tokenizer, chunks: list[list[int]], *, starts_in_thought: bool = False) -> list[Piece]:
    parser = ResponseParser(tokenizer, starts_in_thought=starts_in_thought)
    pieces = [piece for chunk in chunks for piece in parser.push(chunk)]
    return joined([*pieces, *parser.finish()])


def parse(tokenizer: Tokenizer, text: str, *, starts_in_thought: bool = False) -> list[Piece]:
    """The pieces of `text`, the same at once and id by id."""
    ids = tokenizer.encode(text)
    whole = parse_chunks(tokenizer, [ids], starts_in_thought=starts_in_thought)
    assert parse_chunks(tokenizer, [[index] for index in ids], starts_in_thought=starts_in_thought) == whole
    return whole


def call(body: str) -> str:
    return f"<|tool_call>{body}<tool_call|>"


ANSWERS: list[tuple[str, list[Piece]]] = [
    ("", []),
    ("Hello 🙂 東京<turn|>", [Content("Hello 🙂 東京")]),
    ("\n\nkept\n", [Content("\n\nkept\n")]),
    ("<|channel>thought\nHm.\n<channel|>Yes.<turn|>", [Reasoning("Hm."), Content("Yes.")]),
    ("<|channel>thought\n\n\nHm.\n\nSo.\n\n<channel|>\n\nYes.\n", [Reasoning("Hm.\n\nSo."), Content("Yes.\n")]),
    ("<|channel>thought\n<channel|>Yes.", [Content("Yes.")]),
    ("<|channel>thought<channel|>Yes.", [Content("Yes.")]),
    ("<|channel><channel|>Yes.", [Content("Yes.")]),
    ("<|channel>\nthought\nHm.<channel|>", [Reasoning("Hm.")]),
    ("<|channel>thoughtful<channel|>", [Reasoning("thoughtful")]),
    ("<|channel>thou<channel|>", [Reasoning("thou")]),
    ("<|channel>no header\n<channel|>Yes.", [Reasoning("no header"), Content("Yes.")]),
    ("<|channel>thought\ncut short\n", [Reasoning("cut short")]),
    ("<|channel>thought\nA<|channel>thought\nB<channel|>C", [Reasoning("AB"), Content("C")]),
    ("A<|channel>thought\nB<channel|>C", [Content("A"), Reasoning("B"), Content("C")]),
    ("Yes.<turn|>ignored<|channel>thought\nignored", [Content("Yes.")]),
    ("Yes.<eos>ignored", [Content("Yes.")]),
    ("Yes.<|tool_response>response:f{value:1}<tool_response|>", [Content("Yes.")]),
    ("<|channel>thought\nHm.<turn|>ignored", [Reasoning("Hm.")]),
    ("a<pad><bos><|think|><|image|><tool_call|><channel|>b", [Content("ab")]),
    (f"a{Q}b", [Content("ab")]),
    (call(f"call:f{{city:{Q}Paris{Q},days:3}}"), [ToolCall(0, "f", '{"city": "Paris", "days": 3}')]),
    (
        f"<|channel>thought\nHm.\n<channel|>{call('call:f{}')}{call('call:g{}')}<|tool_response>",
        [Reasoning("Hm."), ToolCall(0, "f", "{}"), ToolCall(1, "g", "{}")],
    ),
    ("Let me.\n" + call("call:f{}") + "\nDone.", [Content("Let me.\n"), ToolCall(0, "f", "{}"), Content("Done.")]),
    (f"<|channel>thought\nHm.\n{call('call:f{}')}", [Reasoning("Hm."), ToolCall(0, "f", "{}")]),
    ("<|tool_call>call:f{}<|tool_call>call:g{}<turn|>", [ToolCall(0, "f", "{}"), ToolCall(1, "g", "{}")]),
    ("<|tool_call>call:f{}<|channel>thought\nHm.<channel|>", [ToolCall(0, "f", "{}"), Reasoning("Hm.")]),
    ("<|tool_call>call:f{}<|tool_response>", [ToolCall(0, "f", "{}")]),
    ("<|tool_call>call:f{a:1", [Content("call:f{a:1")]),
    (f"<|tool_call>call:f{{a:{Q}Par", [Content('call:f{a:"Par')]),
    ("<|tool_call>call:f", [Content("call:f")]),
    (
        f"{call('nonsense, no braces')}after{call('call:f{}')}",
        [Content("nonsense, no bracesafter"), ToolCall(0, "f", "{}")],
    ),
    (call(""), []),
]


@pytest.mark.parametrize(("text", "expected"), ANSWERS)
def test_an_answer_is_taken_apart_exactly_so(byte_level: Tokenizer, text: str, expected: list[Piece]) -> None:
    assert parse(byte_level, text) == expected


def test_every_kind_of_tokenizer_gives_the_same_pieces(tokenizer: Tokenizer) -> None:
    text = f"<|channel>thought\nHm 🙂\n<channel|>Yes, 東京.{call(f'call:f{{a:{Q}é{Q}}}')}<turn|>"
    assert parse(tokenizer, text) == [Reasoning("Hm 🙂"), Content("Yes, 東京."), ToolCall(0, "f", '{"a": "é"}')]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hm.\n<channel|>Yes.", [Reasoning("Hm."), Content("Yes.")]),
        ("<channel|>\nYes.", [Content("Yes.")]),
        ("\n\n<channel|>Yes.", [Content("Yes.")]),
        ("<|channel>thought\nHm.<channel|>Yes.", [Reasoning("Hm."), Content("Yes.")]),
        ("never closed", [Reasoning("never closed")]),
        ("thought\nis a word here", [Reasoning("thought\nis a word here")]),
    ],
)
def test_an_answer_may_start_inside_a_thought(byte_level: Tokenizer, text: str, expected: list[Piece]) -> None:
    assert parse(byte_level, text, starts_in_thought=True) == expected


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("<|turn>model\n", False),
        ("<|turn>model\n<tool_response|><|channel>thought\n", True),
        ("<|turn>model\n<|channel>thought\n<channel|>", False),
        ("<|channel>thought\n<turn|>\n<|turn>model\n", False),
        ("", False),
    ],
)
def test_a_prompt_tells_whether_it_opens_a_thought(byte_level: Tokenizer, prompt: str, expected: bool) -> None:
    assert opens_thought(byte_level, byte_level.encode(prompt)) is expected


RAW = 'raw "quotes", back\\slash, {braces}, [brackets], a:colon\nand a line 🙂 \x07'
ARGUMENTS: list[tuple[str, Any]] = [
    ("{}", {}),
    ("{a:null,b:true,c:false}", {"a": None, "b": True, "c": False}),
    ("{a:0,b:-1,c:2.5,d:1e-07,e:-0.5,f:1E+3}", {"a": 0, "b": -1, "c": 2.5, "d": 1e-7, "e": -0.5, "f": 1000.0}),
    (f"{{a:{Q}{RAW}{Q}}}", {"a": RAW}),
    (f"{{a:{Q}{Q}}}", {"a": ""}),
    (f"{{a:{Q} spaces {Q}}}", {"a": " spaces "}),
    (
        f"{{a:[1,[],{{}},{Q}x{Q},[null]],b:{{c:{{d:[true]}}}}}}",
        {"a": [1, [], {}, "x", [None]], "b": {"c": {"d": [True]}}},
    ),
    ("{a-b.c_d é:1}", {"a-b.c_d é": 1}),
    # quirks that leave no doubt
    (" { a : 1 ,\n b : [ 1 , 2 ] } ", {"a": 1, "b": [1, 2]}),
    (f"{{{Q}a{Q}:1}}", {"a": 1}),
    ('{"a":"x\\n\\"y\\"","b":"C:\\dir"}', {"a": 'x\n"y"', "b": "C:\\dir"}),
    ('{"half":"\\ud800"}', {"half": "?"}),
    ("{unit:celsius,at:10:30}", {"unit": "celsius", "at": "10:30"}),
    ("{a:True,b:None}", {"a": True, "b": None}),
    ("{a:1,}", {"a": 1}),
    ("{a:[1,],}", {"a": [1]}),
    ("{a:1,a:2}", {"a": 2}),
    ("{a:007,b:1e999,c:NaN,d:.5}", {"a": "007", "b": "1e999", "c": "NaN", "d": ".5"}),
    ("{a:" + "9" * 200 + "}", {"a": int("9" * 200)}),
    ("{a:" + "9" * 400 + "}", {"a": "9" * 400}),
    ("(a:1)", {"a": 1}),
    ("()", {}),
    ("", {}),
    # closed by its marker, though not by its own brackets or quotes
    ("{a:1", {"a": 1}),
    ("{a:[1,{b:2", {"a": [1, {"b": 2}]}),
    (f"{{a:{Q}Paris}}", {"a": "Paris"}),
    (f"{{a:{Q}Paris", {"a": "Paris"}),
    (f"{{a:[{Q}x{Q},{Q}y]}}", {"a": ["x", "y"]}),
]


@pytest.mark.parametrize(("body", "expected"), ARGUMENTS)
def test_arguments_become_json(byte_level: Tokenizer, body: str, expected: Any) -> None:
    [piece] = parse(byte_level, call(f"call:f{body}"))
    assert isinstance(piece, ToolCall)
    assert (piece.index, piece.name, json.loads(piece.arguments)) == (0, "f", expected)


@pytest.mark.parametrize(
    ("body", "name"),
    [
        ("call:get_weather{}", "get_weather"),
        ("call: a.b:c-d {}", "a.b:c-d"),
        (":f{}", "f"),
        ("f{}", "f"),
        ("callme{}", "callme"),
        ("call{}", "call"),
    ],
)
def test_the_name_is_found_with_and_without_its_prefix(byte_level: Tokenizer, body: str, name: str) -> None:
    assert parse(byte_level, call(body)) == [ToolCall(0, name, "{}")]


@pytest.mark.parametrize(
    "body",
    [
        "call:{a:1}",
        "call::f{}",
        "call:f g{}",
        "call:f[1]",
        "call:f{a}",
        "call:f{:1}",
        "call:f{a:}",
        "call:f{,}",
        "call:f{a:1}}",
        "call:f{a:1}x",
        "call:f{a:[1}]",
        "call:f{a:1 b{c:2}}",
        f"call:f{{a:{Q}x{Q}{Q}y{Q}}}",
        f"call:f{{a:{Q}x{Q}{{b:1}}}}",
        f"call:f{{a:x{Q}y{Q}}}",
        '{"name": "f"}',
        "call:f" + "{a:" * 100 + "1" + "}" * 100,
        "call:f{a:" + "[" * 5000,
    ],
)
def test_a_malformed_call_is_content_without_markers(byte_level: Tokenizer, body: str) -> None:
    assert parse(byte_level, call(body)) == [Content(body.replace(Q, '"'))]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**15), 10**15) | st.floats(-1e9, 1e9) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.from_regex(r"[A-Za-z_]\w{0,5}", fullmatch=True), inner, max_size=3)
    ),
    max_leaves=8,
)


def written(value: Any) -> str:
    """A value in the grammar that the template writes and the model is trained on; `Q` stands for the quote token."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{written(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(written, value)) + "]"
    return f"{Q}{value}{Q}" if isinstance(value, str) else json.dumps(value)


@given(arguments=st.dictionaries(st.from_regex(r"[A-Za-z_]\w{0,5}", fullmatch=True), json_values, max_size=4))
def test_every_call_in_the_grammar_comes_back_as_its_arguments(
    byte_level: Tokenizer, arguments: dict[str, Any]
) -> None:
    [piece] = parse_chunks(byte_level, [byte_level.encode(call(f"call:f{written(arguments)}"))])
    assert isinstance(piece, ToolCall)
    assert json.loads(piece.arguments) == arguments


SOUP = ["<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", Q, "<pad>", "thought", "\n", "call:", "f", "{", "}"]
SOUP += ["[", "]", "(", ")", ":", ",", '"', "\\", "a", "1", "🙂", " ", "call:f{}", "thought\n"]


@given(words=st.lists(st.sampled_from(SOUP), max_size=30), data=st.data(), starts=st.booleans())
def test_the_result_does_not_depend_on_the_cuts(
    byte_level: Tokenizer, words: list[str], data: st.DataObject, starts: bool
) -> None:
    ids = byte_level.encode("".join(words))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(ids)), max_size=6)))
    chunks = [ids[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(ids)], strict=True)]
    whole = parse_chunks(byte_level, [ids], starts_in_thought=starts)
    assert parse_chunks(byte_level, chunks, starts_in_thought=starts) == whole
    assert parse_chunks(byte_level, [[index] for index in ids], starts_in_thought=starts) == whole


@given(data=st.data(), starts=st.booleans())
def test_any_ids_give_valid_json_and_text_without_markers(
    byte_level: Tokenizer, data: st.DataObject, starts: bool
) -> None:
    markers = [byte_level.token_id(token) for token in CHAT_TOKENS]
    ids = data.draw(st.lists(st.sampled_from(markers) | st.integers(-1, byte_level.vocab_size), max_size=40))
    pieces = parse_chunks(byte_level, [ids], starts_in_thought=starts)
    for place, piece in enumerate(piece for piece in pieces if isinstance(piece, ToolCall)):
        assert piece.index == place
        assert isinstance(json.loads(piece.arguments), dict)
        json.dumps(piece.arguments, ensure_ascii=False).encode()
    for piece in pieces:
        if not isinstance(piece, ToolCall):
            assert piece.text
            assert not any(token in piece.text for token in CHAT_TOKENS)


def test_pieces_arrive_as_soon_as_they_are_certain(byte_level: Tokenizer) -> None:
    parser = ResponseParser(byte_level)
    steps: list[tuple[str, list[Piece]]] = [
        ("<|channel>thou", []),
        ("ght", []),
        ("\nHm", [Reasoning("Hm")]),
        (".\n", [Reasoning(".")]),
        ("So\n", [Reasoning("\nSo")]),
        ("<channel|>\n", []),
        ("Yes", [Content("Yes")]),
        ("<|tool_call>call:f{", []),
        ("}", []),
        ("<tool_call|>", [ToolCall(0, "f", "{}")]),
    ]
    for text, expected in steps:
        assert parser.push(byte_level.encode(text)) == expected
    assert parser.finish() == []


def test_the_bytes_of_a_character_wait_for_each_other(byte_level: Tokenizer) -> None:
    ids = byte_level.encode("🙂")
    parser = ResponseParser(byte_level)
    assert parser.push(ids[:-1]) == []
    assert parser.push(ids[-1:]) == [Content("🙂")]
    parser.push(ids[:-1])
    assert parser.finish() == [Content("\ufffd")]


def test_after_the_end_there_is_nothing(byte_level: Tokenizer) -> None:
    parser = ResponseParser(byte_level)
    assert not parser.ended
    assert parser.push(byte_level.encode("a<turn|>b")) == [Content("a")]
    assert parser.ended
    assert parser.push(byte_level.encode("c")) == []
    assert parser.finish() == parser.finish() == []


def test_markers_spelled_in_letters_are_content(byte_level: Tokenizer) -> None:
    text = "the marker <turn|> ends a turn"
    assert parse_chunks(byte_level, [byte_level.encode_plain(text)]) == [Content(text)]


def test_reasoning_tokens_count_the_ids_of_thoughts(byte_level: Tokenizer) -> None:
    parser = ResponseParser(byte_level)
    thought = byte_level.encode("thought\nHm.\n<channel|>")
    parser.push([*byte_level.encode("a<|channel>"), *thought, *byte_level.encode("Yes.")])
    assert parser.reasoning_tokens == len(thought)


def test_a_tokenizer_without_the_markers_is_refused_by_all_their_names(
    train_byte_level: Callable[[list[str]], tokenizers.Tokenizer], tmp_path: Any
) -> None:
    train_byte_level([token for token in CHAT_TOKENS if "channel" not in token]).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(TokenizerError, match=r"<\|channel>, <channel\|>"):
        ResponseParser(Tokenizer.from_folder(tmp_path))


def test_long_answers_take_linear_time(byte_level: Tokenizer) -> None:
    ids = byte_level.encode("<|channel>thought\n") + byte_level.encode("\n🙂") * 20_000
    parser = ResponseParser(byte_level)
    pieces = [piece for index in ids for piece in parser.push([index])]
    assert len(pieces) == 20_000


@pytest.mark.parametrize("end", ["<turn|>", "<eos>", "<|tool_response>"])
def test_ids_are_counted_up_to_and_with_the_end(tokenizer: Tokenizer, end: str) -> None:
    ids = tokenizer.encode(f"Hello.{end}")
    whole, one_by_one = ResponseParser(tokenizer), ResponseParser(tokenizer)
    whole.push([*ids, *tokenizer.encode("more")])
    for index in [*ids, *ids]:
        one_by_one.push([index])
    assert whole.tokens == one_by_one.tokens == len(ids)
    assert whole.ended and one_by_one.ended
