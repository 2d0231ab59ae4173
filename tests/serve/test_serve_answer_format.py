"""`response_format`, `structured_outputs`, a `tool_choice` that calls: what the engine is asked to hold answers to."""

from __future__ import annotations

import dataclasses
from typing import Any

import openai
import pytest
from aiohttp.test_utils import TestClient
from fake_engine import FakeEngine, call

from serve.engine import AnswerFormat

URL = "/v1/chat/completions"
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}
MAIL = {"type": "function", "function": {"name": "mail"}}
STRICT = {"type": "function", "function": {"name": "post", "parameters": SCHEMA, "strict": True}}
NAMED = {"type": "function", "function": {"name": "mail"}}
JSON = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA, "strict": True, "description": "d"}}


async def held_to(client: TestClient, ask: Any, engine: FakeEngine, **fields: Any) -> AnswerFormat | None:
    """What the engine was asked to hold the answer to."""
    response = await client.post(URL, json=ask(**fields))
    assert response.status == 200, await response.text()
    return engine.jobs[-1].grammar  # type: ignore[return-value]  # the fake engine's grammars are their formats


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({}, None),
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, {"schema": {"type": "object"}}),
        ({"response_format": JSON}, {"schema": SCHEMA}),
        ({"structured_outputs": {"json": SCHEMA}}, {"schema": SCHEMA}),
        ({"structured_outputs": {"regex": "a+"}}, {"regex": "a+"}),
        ({"structured_outputs": {"choice": ["a", "b"]}}, {"choice": ("a", "b")}),
        ({"response_format": {"type": "text"}, "structured_outputs": {"regex": "a"}}, {"regex": "a"}),
        ({"tools": [WEATHER, MAIL]}, None),
        ({"tools": [STRICT]}, {"text": True, "functions": ["post"]}),
        ({"tools": [STRICT], "tool_choice": "none"}, None),
        (
            {"tools": [STRICT, MAIL], "parallel_tool_calls": False},
            {"text": True, "functions": ["post", "mail"], "most_calls": 1},
        ),
        ({"tools": [STRICT], "structured_outputs": {"regex": "a"}}, {"regex": "a", "functions": ["post"]}),
        ({"tools": [WEATHER, MAIL], "tool_choice": "required"}, {"functions": ["weather", "mail"]}),
        ({"tools": [WEATHER, MAIL], "tool_choice": NAMED}, {"functions": ["mail"], "most_calls": 1}),
        (
            {"tools": [MAIL], "tool_choice": "required", "parallel_tool_calls": False},
            {"functions": ["mail"], "most_calls": 1},
        ),
        ({"tools": [MAIL], "response_format": JSON}, {"schema": SCHEMA, "functions": ["mail"]}),
        ({"tools": [MAIL], "tool_choice": "none", "response_format": JSON}, {"schema": SCHEMA}),
        ({"tools": [MAIL], "tool_choice": "required", "response_format": JSON}, {"functions": ["mail"]}),
    ],
)
async def test_the_fields_say_what_an_answer_must_be(client, ask, engine, fields, wanted):
    found = await held_to(client, ask, engine, **fields)
    if wanted is None:
        assert found is None
        return
    told = dataclasses.asdict(found) | {"functions": [function["name"] for function in found.functions]}
    assert told == dataclasses.asdict(AnswerFormat(param=found.param)) | {"functions": []} | wanted


async def test_arguments_of_functions_that_are_not_strict_are_the_models_own(client, ask, engine):
    found = await held_to(client, ask, engine, tools=[WEATHER, STRICT])
    assert [function["parameters"] for function in found.functions] == [{"type": "object"}, SCHEMA]


async def test_a_call_that_was_named_beforehand_stops_and_one_that_was_only_wanted_is_a_tool_call(client, ask, engine):
    engine.answer = lambda said: call("mail")
    for choice, reason in ((NAMED, "stop"), ("required", "tool_calls"), ("auto", "tool_calls")):
        response = await client.post(URL, json=ask(tools=[MAIL], tool_choice=choice))
        (one,) = (await response.json())["choices"]
        assert one["finish_reason"] == reason and one["message"]["tool_calls"][0]["function"]["name"] == "mail"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_format_that_outgrows_the_engine_on_the_way_is_the_clients_error(sdk: openai.AsyncOpenAI, stream: bool):
    with pytest.raises(openai.APIError, match="the grammar became too large") as caught:
        made = await sdk.chat.completions.create(
            model="demo",
            messages=[{"role": "user", "content": "outgrow"}],
            response_format={"type": "json_object"},
            stream=stream,
        )
        if stream:
            _ = [chunk async for chunk in made]
    assert caught.value.type == "invalid_request_error"
