"""`langchain-openai` over a real socket: whole and streamed messages, calls and their results, usage, errors."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from aiohttp.test_utils import TestClient
from fake_engine import FakeEngine, call
from langchain_core.messages import AIMessageChunk, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import SecretStr


@tool
def weather(city: str) -> str:
    """The weather in a city."""
    return f"sunny in {city}"


@pytest.fixture
def chat(client: TestClient) -> Any:
    """A chat model at the running server."""

    def made(**options: Any) -> ChatOpenAI:
        base = str(client.make_url("/v1"))
        return ChatOpenAI(model="demo", base_url=base, api_key=SecretStr("not-needed"), max_retries=0, **options)

    return made


async def added(stream: Any) -> AIMessageChunk:
    """A streamed message, put together as LangChain does."""
    chunks = [chunk async for chunk in stream]
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    return whole


async def test_a_conversation_is_answered_with_its_usage(chat):
    reply = await chat(temperature=0, top_p=0.9, seed=3).ainvoke([SystemMessage("Be brief"), HumanMessage("hi")])
    assert reply.content == "You said: hi"
    assert reply.response_metadata["finish_reason"] == "stop" and reply.response_metadata["model_name"] == "demo"
    assert {name: reply.usage_metadata[name] for name in ("input_tokens", "output_tokens", "total_tokens")} == {
        "input_tokens": 2,
        "output_tokens": 13,
        "total_tokens": 15,
    }
    assert reply.usage_metadata["input_token_details"]["cache_read"] == 0


async def test_reasoning_stays_out_of_the_content_and_is_counted(chat):
    reply = await chat(reasoning_effort="high").ainvoke("hi")
    assert reply.content == "You said: hi"
    assert reply.usage_metadata["output_token_details"]["reasoning"] == 5


@pytest.mark.parametrize("usage", [True, False])
async def test_a_stream_adds_up_to_the_whole_message(chat, usage):
    model = chat(stream_usage=usage)
    streamed, whole = await added(model.astream("hi")), await model.ainvoke("hi")
    assert streamed.content == whole.content == "You said: hi"
    assert streamed.usage_metadata == (whole.usage_metadata if usage else None)
    assert streamed.response_metadata["finish_reason"] == "stop"


async def test_log_probabilities_arrive(chat):
    reply = await chat(logprobs=True, top_logprobs=1).ainvoke("hi")
    assert [token["token"] for token in reply.response_metadata["logprobs"]["content"]] == list("You said: hi")


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_tool_is_called_and_its_result_answered(chat, engine: FakeEngine, streamed):
    engine.answer = lambda said: f"So: {said}" if said.startswith("sunny") else call("weather", '{"city": "Oslo"}')
    model = chat().bind_tools([weather])
    asked: list[Any] = [HumanMessage("How is it in Oslo?")]
    reply = await added(model.astream(asked)) if streamed else await model.ainvoke(asked)
    (called,) = reply.tool_calls
    assert (called["name"], called["args"]) == ("weather", {"city": "Oslo"})
    assert not reply.invalid_tool_calls and reply.response_metadata["finish_reason"] == "tool_calls"
    result = await weather.ainvoke(called)
    assert isinstance(result, ToolMessage)
    assert (await model.ainvoke([*asked, reply, result])).content == "So: sunny in Oslo"
    assert engine.tools[0][0]["function"]["parameters"]["properties"]["city"]["type"] == "string"


async def test_several_questions_at_once_are_all_answered(chat):
    replies = await chat().abatch(["a", "b", "c"])
    assert [reply.content for reply in replies] == ["You said: a", "You said: b", "You said: c"]


async def test_a_refusal_is_the_openai_clients_exception(chat):
    with pytest.raises(openai.BadRequestError) as caught:
        await chat(presence_penalty=1).ainvoke("hi")
    assert caught.value.param == "presence_penalty"
    with pytest.raises(openai.NotFoundError):
        await chat().bind(model="other").ainvoke("hi")
