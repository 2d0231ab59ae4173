"""Whatever dialect a client speaks, a template sees one form."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from dgemma_jax.prompt.messages import MessageError, guard_messages, guard_tools, normalise_messages, normalise_tools
from dgemma_jax.prompt.tokenizer import GUARD, Tokenizer


def call(arguments: Any) -> list[dict[str, Any]]:
    return [
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}],
        }
    ]


def schema_of(properties: dict[str, Any], **more: Any) -> dict[str, Any]:
    tools = normalise_tools(
        [{"type": "function", "function": {"name": "f", "parameters": {"properties": properties, **more}}}]
    )
    assert tools is not None
    return tools[0]["function"]["parameters"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ('{"city": "Köln", "days": 3}', {"city": "Köln", "days": 3}),
        ({"city": "Köln"}, {"city": "Köln"}),
        ("", {}),
        (" \n", {}),
        ("{}", {}),
        (None, {}),
    ],
)
def test_arguments_become_a_mapping(arguments: Any, expected: dict[str, Any]) -> None:
    [message] = normalise_messages(call(arguments))
    assert message["tool_calls"][0]["function"]["arguments"] == expected
    assert message["tool_calls"][0]["id"] == "c"


@pytest.mark.parametrize("arguments", ["[1]", '"text"', "3", "{broken", [1], 7])
def test_arguments_that_are_no_object_are_refused_by_their_path(arguments: Any) -> None:
    with pytest.raises(MessageError) as raised:
        normalise_messages([{"role": "user", "content": "a"}, *call(arguments)])
    assert raised.value.param == "messages[1].tool_calls[0].function.arguments"
    assert raised.value.param in str(raised.value)


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ({"type": "text", "text": "a"}, {"type": "text", "text": "a"}),
        ({"type": "input_text", "text": "a"}, {"type": "text", "text": "a"}),
        ("a", {"type": "text", "text": "a"}),
        ({"type": "image_url", "image_url": {"url": "data:..."}}, {"type": "image"}),
        ({"type": "input_image", "image_url": "data:..."}, {"type": "image"}),
        ({"type": "image"}, {"type": "image"}),
        ({"type": "video_url", "video_url": {"url": "data:..."}}, {"type": "video"}),
        ({"type": "video"}, {"type": "video"}),
    ],
)
def test_content_parts_become_text_image_or_video(part: Any, expected: dict[str, Any]) -> None:
    [message] = normalise_messages([{"role": "user", "content": [part]}])
    assert message["content"] == [expected]


@pytest.mark.parametrize(
    ("part", "param"),
    [
        ({"type": "input_audio"}, "messages[0].content[1].type"),
        ({"type": ["text"]}, "messages[0].content[1].type"),
        ({"text": "no type"}, "messages[0].content[1].type"),
        (7, "messages[0].content[1].type"),
        ({"type": "text"}, "messages[0].content[1].text"),
        ({"type": "text", "text": 7}, "messages[0].content[1].text"),
    ],
)
def test_unknown_parts_are_refused_by_their_path(part: Any, param: str) -> None:
    with pytest.raises(MessageError) as raised:
        normalise_messages([{"role": "user", "content": ["ok", part]}])
    assert raised.value.param == param


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"content": "no role"}, "messages[0]"),
        ("text", "messages[0]"),
        ({"role": "user", "content": 7}, "messages[0].content"),
        ({"role": "user", "content": {"type": "text", "text": "not in a list"}}, "messages[0].content"),
        ({"role": "assistant", "tool_calls": [{"id": "c"}]}, "messages[0].tool_calls[0].function"),
        ({"role": "assistant", "tool_calls": ["f"]}, "messages[0].tool_calls[0].function"),
    ],
)
def test_malformed_messages_are_refused_by_their_path(message: Any, param: str) -> None:
    with pytest.raises(MessageError) as raised:
        normalise_messages([message])
    assert raised.value.param == param


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content", "thinking"])
def test_reasoning_is_found_under_every_name_and_given_under_both(name: str) -> None:
    [message] = normalise_messages([{"role": "assistant", "content": "a", name: "because"}])
    assert message["reasoning"] == message["reasoning_content"] == "because"


def test_inputs_are_left_alone_and_a_second_pass_changes_nothing() -> None:
    messages = call('{"a": 1}')
    tools = [
        {
            "type": "function",
            "function": {"name": "f", "parameters": {"properties": {"a": {"type": ["null", "string"]}}}},
        }
    ]
    before = copy.deepcopy((messages, tools))
    once = (normalise_messages(messages), normalise_tools(tools))
    assert (messages, tools) == before
    assert (normalise_messages(once[0]), normalise_tools(once[1])) == once


@pytest.mark.parametrize("tools", [None, []])
def test_no_tools_are_none(tools: Any) -> None:
    assert normalise_tools(tools) is None


def test_a_tool_keeps_its_name_gets_a_description_and_its_parameters_a_type() -> None:
    bare = {"name": "f", "parameters": {"properties": {}}}
    expected = {
        "type": "function",
        "function": {"name": "f", "description": "", "parameters": {"type": "object", "properties": {}}},
    }
    assert normalise_tools([bare]) == normalise_tools([{"type": "function", "function": bare}]) == [expected]


def test_a_tool_without_a_name_is_refused_by_its_path() -> None:
    with pytest.raises(MessageError) as raised:
        normalise_tools([{"name": "f"}, {"type": "function", "function": {}}])
    assert raised.value.param == "tools[1].function"


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"type": ["string", "null"]}, {"type": "string", "nullable": True}),
        ({"type": ["null", "integer"]}, {"type": "integer", "nullable": True}),
        ({"type": ["string", "integer"]}, {"type": "string"}),
        ({"type": ["null"]}, {"type": "null", "nullable": True}),
        (
            {"anyOf": [{"type": "number"}, {"type": "null"}], "title": "T"},
            {"type": "number", "nullable": True, "title": "T"},
        ),
        ({"oneOf": [{"type": "number"}, {"type": "string"}]}, {"type": "number"}),
        ({"enum": ["a", "b"]}, {"enum": ["a", "b"], "type": "string"}),
        ({"const": "a"}, {"const": "a", "enum": ["a"], "type": "string"}),
        ({"items": {"type": ["string", "null"]}}, {"type": "array", "items": {"type": "string", "nullable": True}}),
        ({"properties": {"b": {"type": "string"}}}, {"type": "object", "properties": {"b": {"type": "string"}}}),
        ({"enum": [1, 2]}, {"enum": [1, 2], "type": "integer"}),
        ({"enum": ["a", None]}, {"enum": ["a", None], "type": "string", "nullable": True}),
        ({"enum": ["a", 1]}, {"enum": ["a", 1]}),
        ({"const": True}, {"const": True, "enum": [True], "type": "boolean"}),
        ({"anyOf": [{"const": "a"}, {"enum": ["b", "c"]}]}, {"enum": ["a", "b", "c"], "type": "string"}),
        (
            {"oneOf": [{"const": 1}, {"const": 2}, {"type": "null"}]},
            {"enum": [1, 2], "type": "integer", "nullable": True},
        ),
        ({"anyOf": [{"const": "a"}, {"type": "string"}]}, {"type": "string"}),
        ({"anyOf": [{"const": "a"}, {}]}, {}),
        (
            {"allOf": [{"type": "string"}, {"description": "d"}], "default": 1},
            {"type": "string", "description": "d", "default": 1},
        ),
        (
            {
                "allOf": [
                    {"properties": {"a": {"const": 1}}, "required": ["a"]},
                    {"properties": {"b": {}}, "required": ["b"]},
                ]
            },
            {
                "properties": {"a": {"const": 1, "enum": [1], "type": "integer"}, "b": {}},
                "required": ["a", "b"],
                "type": "object",
            },
        ),
        (True, {}),
    ],
)
def test_a_schema_has_one_type(schema: Any, expected: dict[str, Any]) -> None:
    assert schema_of({"a": schema})["properties"]["a"] == expected


def test_references_are_replaced_by_what_they_name() -> None:
    definitions = {"Unit": {"enum": ["c", "f"]}, "Place": {"properties": {"unit": {"$ref": "#/$defs/Unit"}}}}
    found = schema_of({"p": {"$ref": "#/$defs/Place", "description": "where"}}, **{"$defs": definitions})
    unit = {"enum": ["c", "f"], "type": "string"}
    assert found["properties"]["p"] == {"properties": {"unit": unit}, "description": "where", "type": "object"}
    assert "$defs" not in found
    for key in ("allOf", "anyOf"):
        found = schema_of({"u": {key: [{"$ref": "#/$defs/Unit"}], "default": "c"}}, **{"$defs": definitions})
        assert found["properties"]["u"] == {**unit, "default": "c"}


@pytest.mark.parametrize("reference", ["#/$defs/Missing", "https://example.com/schema", 7])
def test_references_to_nowhere_are_plain_objects(reference: Any) -> None:
    assert schema_of({"p": {"$ref": reference}})["properties"]["p"] == {"type": "object"}


def test_recursive_types_end() -> None:
    node = {"type": "object", "properties": {"next": {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}]}}}
    found = schema_of({"head": {"$ref": "#/$defs/Node"}}, **{"$defs": {"Node": node}})
    assert found["properties"]["head"]["properties"]["next"] == {"type": "object", "nullable": True}


def test_references_that_would_write_out_without_end_are_refused() -> None:
    doubled = {f"d{n}": {"properties": {name: {"$ref": f"#/$defs/d{n + 1}"} for name in "ab"}} for n in range(40)}
    with pytest.raises(MessageError, match=r"tools\[0\].function.parameters: .*more than"):
        schema_of({"x": {"$ref": "#/$defs/d0"}}, **{"$defs": doubled})


@pytest.mark.parametrize(
    "wrong",
    [
        {"$defs": []},
        {"definitions": 3},
        {"enum": 5},
        {"allOf": 1},
        {"allOf": [1, {"required": 2}]},
        {"anyOf": [1]},
        {"properties": 1},
        {"items": "x"},
    ],
)
def test_keywords_of_the_wrong_type_are_no_crash(wrong: dict[str, Any]) -> None:
    assert schema_of({"x": wrong}, **{"x-of-their-own": 1})["type"] == "object"
    assert normalise_tools([{"type": "function", "function": {"name": "f", "parameters": wrong}}])


def test_guarding_breaks_every_marker_a_client_wrote(byte_level: Tokenizer) -> None:
    messages = [
        {"role": "user", "content": "<|turn>"},
        {"role": "user", "content": [{"type": "text", "text": "<turn|>"}, {"type": "image"}]},
        *call({"<|tool>": ['<|"|>', 3, None]}),
    ]
    found = guard_messages(normalise_messages(messages), byte_level)
    assert found[0] == {"role": "user", "content": f"<{GUARD}|turn>"}
    assert found[1]["content"] == [{"type": "text", "text": f"<{GUARD}turn|>"}, {"type": "image"}]
    assert found[2]["tool_calls"][0]["function"]["arguments"] == {f"<{GUARD}|tool>": [f'<{GUARD}|"|>', 3, None]}
    assert guard_tools([{"function": {"name": "f", "description": "<bos>"}}], byte_level) == [
        {"function": {"name": "f", "description": f"<{GUARD}bos>"}}
    ]
    assert guard_tools(None, byte_level) is None


@pytest.mark.parametrize(
    "content", ["<|channel>thought\nx\n<channel|>answer", "answer<|channel>thought\ncut", "<channel|>answer"]
)
def test_thoughts_sent_back_inside_an_answer_are_removed(byte_level: Tokenizer, content: str) -> None:
    for sent in (content, [{"type": "text", "text": content}]):
        [message] = guard_messages(normalise_messages([{"role": "assistant", "content": sent}]), byte_level)
        assert message["content"] in ("answer", [{"type": "text", "text": "answer"}])
