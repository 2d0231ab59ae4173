"""The official `openai` client over a real socket: what it makes of replies, of calls, and of every kind of error."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import openai
import pytest
from aiohttp.test_utils import TestClient
from fake_engine import CLOSE_THOUGHT, OPEN_THOUGHT, FakeEngine, call

HI: list[Any] = [{"role": "user", "content": "hi"}]
TOOLS: list[Any] = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]


@pytest.fixture
def connect(client: TestClient) -> Callable[..., openai.AsyncOpenAI]:
    """A client of the running server."""

    def connected(to: TestClient = client, **options: Any) -> openai.AsyncOpenAI:
        options = {"api_key": "not-used", "max_retries": 0} | options
        return openai.AsyncOpenAI(base_url=str(to.make_url("/v1")), **options)

    return connected


@pytest.fixture
async def guarded(start) -> AsyncIterator[TestClient]:
    async with start(api_key=("right",), max_body_mib=1) as client:
        yield client


@pytest.mark.parametrize(
    ("fields", "kind", "param", "code"),
    [
        ({"temperature": 3}, openai.BadRequestError, "temperature", "invalid_value"),
        ({"frequency_penalty": 1}, openai.BadRequestError, "frequency_penalty", "unsupported_parameter"),
        ({"messages": []}, openai.BadRequestError, "messages", "invalid_value"),
        ({"messages": [{"role": "user", "content": "x" * 900}]}, openai.BadRequestError, "messages", None),
        ({"model": "gpt-4o"}, openai.NotFoundError, "model", "model_not_found"),
        ({"messages": [{"role": "user", "content": "explode"}]}, openai.InternalServerError, None, "internal_error"),
    ],
)
async def test_a_refusal_is_the_exception_of_its_status(connect, fields, kind, param, code):
    async with connect() as sdk:
        with pytest.raises(kind) as caught:
            await sdk.chat.completions.create(**{"model": "demo", "messages": HI} | fields)
    assert (caught.value.param, caught.value.code) == (param, code or "context_length_exceeded")
    assert caught.value.request_id


async def test_a_wrong_key_and_a_body_too_large_are_exceptions_of_their_own(connect, guarded):
    async with connect(guarded, api_key="wrong") as sdk:
        with pytest.raises(openai.AuthenticationError):
            await sdk.models.list()
    async with connect(guarded, api_key="right") as sdk:
        assert [model.id async for model in sdk.models.list()] == ["demo", "org/alias"]
        with pytest.raises(openai.APIStatusError) as caught:
            await sdk.chat.completions.create(model="demo", messages=[{"role": "user", "content": "x" * 2**21}])
    assert caught.value.status_code == 413


async def test_a_full_server_is_a_rate_limit_that_the_client_retries(start, connect, engine: FakeEngine):
    async with start(max_queue=0) as client, connect(client) as sdk:
        stream = await sdk.chat.completions.create(
            model="demo", messages=[{"role": "user", "content": "hold"}], stream=True
        )
        with pytest.raises(openai.RateLimitError) as caught:
            await sdk.chat.completions.create(model="demo", messages=HI)
        assert caught.value.response.headers["Retry-After"] == "1"
        engine.release.set()
        assert [chunk async for chunk in stream][-1].choices[0].finish_reason == "stop"


async def test_an_error_in_a_stream_is_raised_after_what_came_before(connect):
    async with connect() as sdk:
        stream = await sdk.chat.completions.create(
            model="demo", messages=[{"role": "user", "content": "explode"}], stream=True
        )
        said = ""
        with pytest.raises(openai.APIError) as caught:
            async for chunk in stream:
                said += chunk.choices[0].delta.content or ""
    assert said == "You " and caught.value.code == "internal_error"


async def test_a_slow_reply_is_a_timeout(connect):
    async with connect(timeout=0.05) as sdk:
        with pytest.raises(openai.APITimeoutError):
            await sdk.chat.completions.create(model="demo", messages=[{"role": "user", "content": "hold"}])


async def test_the_clients_own_accumulator_puts_a_stream_together(connect, engine: FakeEngine):
    engine.answer = lambda _: "a" + call("f", '{"x": 1}') + call("f", '{"y": "}"}')
    asked: dict[str, Any] = {"model": "demo", "messages": HI, "tools": TOOLS, "seed": 4, "logprobs": True}
    async with connect() as sdk:
        async with sdk.chat.completions.stream(**asked, stream_options={"include_usage": True}) as stream:
            kinds = {event.type async for event in stream}
            made = await stream.get_final_completion()
        whole = await sdk.chat.completions.create(**asked)
    assert {"content.delta", "logprobs.content.delta", "tool_calls.function.arguments.done"} <= kinds
    choice = made.choices[0]
    assert (choice.message.content, choice.finish_reason) == ("a", "tool_calls")
    assert [tool.function.arguments for tool in choice.message.tool_calls] == ['{"x": 1}', '{"y": "}"}']
    assert choice.logprobs.model_dump() == whole.choices[0].logprobs.model_dump()
    assert made.usage == whole.usage


async def test_reasoning_is_switched_as_the_page_says(connect, engine: FakeEngine):
    async with connect() as sdk:
        for extra, wanted in (({"thinking": True}, "Hmm."), ({"thinking": False}, None)):
            reply = await sdk.chat.completions.create(
                model="demo", messages=HI, extra_body={"chat_template_kwargs": extra}
            )
            assert reply.choices[0].message.reasoning == wanted
            assert (reply.usage.completion_tokens_details.reasoning_tokens > 0) == bool(wanted)
        engine.answer = lambda _: f"{OPEN_THOUGHT}secret{CLOSE_THOUGHT}open"
        hidden = await sdk.chat.completions.create(
            model="demo", messages=HI, extra_body={"include_reasoning": False}, logprobs=True
        )
    assert "secret" not in hidden.model_dump_json() and hidden.choices[0].message.content == "open"


async def test_an_answer_names_its_request(connect):
    async with connect(default_headers={"x-request-id": "mine"}) as sdk:
        assert (await sdk.chat.completions.create(model="demo", messages=HI))._request_id == "mine"
