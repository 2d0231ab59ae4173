"""Functions that the model may call: declared, called, answered, whole and streamed."""

from __future__ import annotations

import json
from typing import Any

import openai
import pydantic
import pytest
from fake_engine import END, FakeEngine, call

from serve import tools

URL = "/v1/chat/completions"
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "Tells it.", "parameters": CITY}}
ROME, OSLO = '{"city": "Rome"}', '{"city": "Oslo \\"}"}'
TWO = f"Let me see.{call('weather', ROME)}{call('weather', OSLO)}"
USER = {"role": "user", "content": "How is it?"}


def called(*calls: tuple[str, str]) -> dict[str, Any]:
    """An assistant message that calls `weather`, as a client sends it back."""
    made = [{"id": id, "type": "function", "function": {"name": "weather", "arguments": a}} for id, a in calls]
    return {"role": "assistant", "content": None, "tool_calls": made}


def result(id: str, content: Any) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": id, "content": content}


async def post(client, body: dict[str, Any], status: int = 200) -> dict[str, Any]:
    response = await client.post(URL, json=body)
    assert response.status == status, await response.text()
    return await response.json()


async def streamed(client, body: dict[str, Any]) -> list[dict[str, Any]]:
    text = await (await client.post(URL, json=body | {"stream": True})).text()
    return [json.loads(line.removeprefix("data: "))["choices"][0] for line in text.split("\n\n")[:-2]]


async def test_calls_are_a_reply_of_their_own(client, ask, engine: FakeEngine):
    engine.answer = lambda said: call("weather", ROME)
    [choice] = (await post(client, ask(tools=[WEATHER])))["choices"]
    assert choice["finish_reason"] == "tool_calls"
    [made] = choice["message"].pop("tool_calls")
    assert choice["message"] == {"role": "assistant", "content": None, "reasoning": None, "reasoning_content": None}
    assert made.pop("id").startswith("call_")
    assert made == {"type": "function", "function": {"name": "weather", "arguments": ROME}}


async def test_text_beside_calls_is_kept_and_every_call_has_an_id(client, ask, engine: FakeEngine):
    engine.answer = lambda said: TWO
    message = (await post(client, ask(tools=[WEATHER])))["choices"][0]["message"]
    assert message["content"] == "Let me see."
    assert [made["function"]["arguments"] for made in message["tool_calls"]] == [ROME, OSLO]
    assert len({made["id"] for made in message["tool_calls"]}) == 2


async def test_a_streamed_call_is_its_name_then_its_arguments_one_call_after_the_other(client, ask, engine: FakeEngine):
    engine.answer = lambda said: TWO
    chunks = await streamed(client, ask(tools=[WEATHER]))
    deltas = [part for chunk in chunks for part in chunk["delta"].get("tool_calls", ())]
    ids = [delta.pop("id") for delta in deltas[::2]]
    assert len(set(ids)) == 2 and all(id.startswith("call_") for id in ids)
    assert deltas == [
        part
        for index, arguments in enumerate((ROME, OSLO))
        for part in (
            {"index": index, "type": "function", "function": {"name": "weather", "arguments": ""}},
            {"index": index, "function": {"arguments": arguments}},
        )
    ]
    assert chunks[-1]["finish_reason"] == "tool_calls"
    assert "".join(chunk["delta"].get("content", "") for chunk in chunks) == "Let me see."


async def test_the_official_client_puts_streamed_calls_together(sdk: openai.AsyncOpenAI, engine: FakeEngine):
    engine.answer = lambda said: TWO
    tools = [openai.pydantic_function_tool(_Weather, name="weather")]
    async with sdk.chat.completions.stream(model="demo", messages=[USER], tools=tools) as stream:
        final = await stream.get_final_completion()
    calls = final.choices[0].message.tool_calls
    assert [made.function.parsed_arguments.city for made in calls] == ["Rome", 'Oslo "}']
    assert final.choices[0].finish_reason == "tool_calls"


async def test_a_conversation_with_calls_goes_round_with_the_official_client(sdk, engine: FakeEngine):
    engine.answer = lambda said: TWO if said == USER["content"] else f"It is {said}."
    first = await sdk.chat.completions.create(model="demo", messages=[USER], tools=[WEATHER])
    message = first.choices[0].message
    results = [result(made.id, str(index)) for index, made in enumerate(message.tool_calls)]
    for history in (message, message.model_dump(), message.model_dump(exclude_none=True)):
        messages = [USER, history, *reversed(results)]
        second = await sdk.chat.completions.create(model="demo", messages=messages, tools=[WEATHER])
        assert second.choices[0].message.content == "It is 1."
        assert [said.get("content") for said in engine.rendered[-1][2:]] == ["0", "1"], "in the order of the calls"


async def test_what_the_official_client_adds_to_a_reply_may_come_back(sdk, engine: FakeEngine):
    engine.answer = lambda said: TWO if said == USER["content"] else f"It is {said}."
    strict = {"type": "function", "function": WEATHER["function"] | {"strict": True}}
    async with sdk.chat.completions.stream(model="demo", messages=[USER], tools=[strict]) as stream:
        message = (await stream.get_final_completion()).choices[0].message
    assert message.tool_calls[0].function.parsed_arguments == {"city": "Rome"}
    results = [result(made.id, str(index)) for index, made in enumerate(message.tool_calls)]
    for history in (message, message.model_dump()):
        second = await sdk.chat.completions.create(model="demo", messages=[USER, history, *results], tools=[WEATHER])
        assert second.choices[0].message.content == "It is 1."
    assert engine.rendered[-1][1]["tool_calls"][0]["function"] == {"name": "weather", "arguments": ROME}


async def test_calls_and_results_reach_the_template_as_it_reads_them(client, engine: FakeEngine):
    parts = [{"type": "text", "text": "co"}, {"type": "text", "text": "ld"}]
    messages = [USER, called(("a", ROME), ("b", OSLO)), result("b", parts), result("a", "warm")]
    await post(client, {"model": "demo", "messages": [*messages, USER], "tools": [WEATHER]})
    assert engine.rendered == [
        [
            USER,
            called(("a", ROME), ("b", OSLO)) | {"content": ""},
            result("a", "warm"),
            result("b", "cold"),
            USER,
        ]
    ]
    assert engine.tools == [[WEATHER]]


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([USER, result("a", "x")], "messages[1].tool_call_id"),
        ([USER, called(("a", ROME)), result("b", "x")], "messages[2].tool_call_id"),
        ([USER, called(("a", ROME)), result("a", "x"), result("a", "y")], "messages[3].tool_call_id"),
        ([USER, called(("a", ROME)), USER, result("a", "x")], "messages[1].tool_calls"),
        ([USER, called(("a", ROME), ("b", ROME)), result("b", "x")], "messages[1].tool_calls"),
        ([USER, called(("a", ROME), ("a", ROME)), result("a", "x")], "messages[1].tool_calls"),
        ([USER, called(("a", ROME))], "messages[1].tool_calls"),
    ],
)
async def test_results_that_do_not_fit_their_calls_are_refused(client, engine, messages, param):
    body = await post(client, {"model": "demo", "messages": messages, "tools": [WEATHER]}, status=400)
    assert body["error"]["param"] == param
    assert not engine.rendered


@pytest.mark.parametrize("fields", [{}, {"tools": []}, {"tools": [WEATHER], "tool_choice": "none"}])
async def test_without_tools_a_call_is_what_the_model_had_to_say(client, ask, engine: FakeEngine, fields):
    engine.answer = lambda said: f"Ask {call('weather', ROME)}!"
    body = ask(**fields)
    [choice] = (await post(client, body))["choices"]
    assert choice["message"]["content"] == f"Ask weather({ROME})!"
    assert "tool_calls" not in choice["message"] and choice["finish_reason"] == "stop"
    assert engine.tools == [None], "the model is not told of tools that it may not call"
    assert (
        "".join(chunk["delta"].get("content", "") for chunk in await streamed(client, body))
        == (choice["message"]["content"])
    )


async def test_a_call_of_a_function_that_was_not_declared_is_for_the_client_to_answer(client, ask, engine: FakeEngine):
    engine.answer = lambda said: call("tides", "{}")
    [choice] = (await post(client, ask(tools=[WEATHER])))["choices"]
    assert choice["message"]["tool_calls"][0]["function"]["name"] == "tides"


async def test_without_parallel_calls_a_reply_ends_with_its_first_call(client, ask, engine: FakeEngine, eventually):
    engine.answer = lambda said: TWO + "x" * 300
    body = ask("hold", tools=[WEATHER], parallel_tool_calls=False)
    engine.release.set()
    whole = await post(client, body)
    assert len(whole["choices"][0]["message"]["tool_calls"]) == 1
    assert whole["choices"][0]["finish_reason"] == "tool_calls"
    assert whole["usage"]["completion_tokens"] == len(f"Let me see.{call('weather', ROME)}")
    await eventually(lambda: engine.ended == ["abandoned"])
    chunks = await streamed(client, body)
    assert {part["index"] for chunk in chunks for part in chunk["delta"].get("tool_calls", ())} == {0}


async def test_a_call_that_the_limit_cuts_off_is_no_call(client, ask, engine: FakeEngine):
    engine.answer = lambda said: call("weather", ROME)
    [choice] = (await post(client, ask(tools=[WEATHER], max_tokens=10)))["choices"]
    assert choice["finish_reason"] == "length"
    assert "tool_calls" not in choice["message"] and choice["message"]["content"] == 'weather{"'


async def test_a_stop_string_after_a_call_leaves_the_call_to_be_answered(client, ask, engine: FakeEngine):
    engine.answer = lambda said: call("weather", ROME) + "So END and more"
    [choice] = (await post(client, ask(tools=[WEATHER], stop="END")))["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("So ", "tool_calls")


async def test_reasoning_comes_with_calls(client, ask, engine: FakeEngine):
    engine.answer = lambda said: call("weather", ROME) + END
    message = (await post(client, ask(tools=[WEATHER], reasoning_effort="low")))["choices"][0]["message"]
    assert (message["reasoning"], len(message["tool_calls"])) == ("Hmm.", 1)


class _Weather(pydantic.BaseModel):
    city: str


async def test_more_calls_and_results_than_a_template_can_pair_are_refused(client, ask, monkeypatch):
    monkeypatch.setattr(tools, "_MOST_PAIRS", 3)
    ids = ["a", "b"]
    messages = [USER, called(*((id, ROME) for id in ids)), *(result(id, "warm") for id in ids), USER]
    error = (await post(client, ask() | {"messages": messages}, 400))["error"]
    assert (error["param"], error["code"]) == ("messages[1].tool_calls", "invalid_value")
    await post(client, ask() | {"messages": [USER, called(("a", ROME)), result("a", "warm"), USER]})
