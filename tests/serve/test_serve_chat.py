"""Chat completions as clients see them: whole, streamed, and every field that is supported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import openai
import pytest
from aiohttp.test_utils import TestClient
from fake_engine import CLOSE_THOUGHT, END, OPEN_THOUGHT, STEPS, FakeEngine

URL = "/v1/chat/completions"
HI = [{"role": "user", "content": "hi"}]


async def post(client: TestClient, body: dict[str, Any]) -> dict[str, Any]:
    response = await client.post(URL, json=body)
    assert response.status == 200, await response.text()
    return await response.json()


async def frames(client: TestClient, body: dict[str, Any]) -> list[Any]:
    """The decoded frames of a streamed reply, `[DONE]` left out but checked."""
    response = await client.post(URL, json=body | {"stream": True})
    assert response.status == 200, await response.text()
    assert response.content_type == "text/event-stream"
    assert response.headers["Cache-Control"] == "no-cache"
    assert response.headers["X-Accel-Buffering"] == "no"
    *data, done, rest = (await response.text()).split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [json.loads(line.removeprefix("data: ")) for line in data]


def joined(chunks: list[Any], field: str) -> str:
    return "".join(choice["delta"].get(field, "") for chunk in chunks for choice in chunk["choices"])


async def test_a_whole_reply_has_openais_shape(client, ask):
    body = await post(client, ask("hi", seed=7))
    assert body.pop("id").startswith("chatcmpl-")
    assert isinstance(body.pop("created"), int)
    message = {"role": "assistant", "content": "You said: hi", "reasoning": None, "reasoning_content": None}
    assert body == {
        "object": "chat.completion",
        "model": "demo",
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
        "usage": {
            "prompt_tokens": 2,
            "completion_tokens": 13,  # twelve characters and the end token
            "total_tokens": 15,
            "prompt_tokens_details": {"cached_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0},
            "diffusion": {"canvases": 4, "steps": 4 * STEPS, "seed": 7},
        },
    }


async def test_the_official_client_reads_a_whole_reply(sdk: openai.AsyncOpenAI):
    reply = await sdk.chat.completions.create(model="demo", messages=HI, reasoning_effort="high", seed=3)
    assert reply.choices[0].message.content == "You said: hi"
    assert reply.choices[0].message.reasoning == "Hmm."
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage.completion_tokens_details.reasoning_tokens == 5
    assert reply.usage.diffusion["seed"] == 3


async def test_the_official_client_reads_a_streamed_reply(sdk: openai.AsyncOpenAI):
    stream = await sdk.chat.completions.create(
        model="demo", messages=HI, stream=True, stream_options={"include_usage": True}, reasoning_effort="low"
    )
    chunks = [chunk async for chunk in stream]
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert deltas[0].role == "assistant"
    assert "".join(delta.content or "" for delta in deltas) == "You said: hi"
    assert "".join(getattr(delta, "reasoning", None) or "" for delta in deltas) == "Hmm."
    assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas) == "Hmm."
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 2) + ["stop"]
    assert chunks[-1].choices == [] and chunks[-1].usage.total_tokens == 3 + 19
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len({chunk.id for chunk in chunks}) == 1


async def test_a_stream_is_role_then_a_chunk_per_canvas_then_the_reason(client, ask):
    chunks = await frames(client, ask())
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
        {"role": "assistant", "content": ""},
        {"content": "You "},
        {"content": "said"},
        {"content": ": hi"},
        {},  # the last canvas held the end token alone
        {},
    ]
    assert all(chunk["object"] == "chat.completion.chunk" for chunk in chunks)
    assert all(set(chunk["choices"][0]) == {"index", "delta", "logprobs", "finish_reason"} for chunk in chunks)
    assert not any("usage" in chunk for chunk in chunks)


@pytest.mark.parametrize("thinking", [False, True])
@pytest.mark.parametrize("fields", [{}, {"stop": "d:"}, {"max_tokens": 7}, {"include_reasoning": False}])
async def test_whole_and_streamed_replies_say_the_same(client, ask, thinking, fields):
    body = ask("hello there", seed=1, chat_template_kwargs={"thinking": thinking}, **fields)
    whole = await post(client, body)
    *chunks, last = await frames(client, body | {"stream_options": {"include_usage": True}})
    message = whole["choices"][0]["message"]
    assert joined(chunks, "content") == message["content"]
    assert joined(chunks, "reasoning") == (message["reasoning"] or "")
    assert chunks[-1]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
    assert last["usage"] == whole["usage"]


@pytest.mark.parametrize(
    ("fields", "server_thinks", "thinks"),
    [
        ({}, False, False),
        ({}, True, True),
        ({"chat_template_kwargs": {"thinking": True}}, False, True),
        ({"chat_template_kwargs": {"enable_thinking": True}}, False, True),
        ({"chat_template_kwargs": {"thinking": False}}, True, False),
        ({"chat_template_kwargs": {"thinking": True, "enable_thinking": True}}, False, True),
        ({"chat_template_kwargs": {"thinking": None}, "reasoning_effort": "low"}, False, True),
        ({"chat_template_kwargs": {"thinking": False}, "reasoning_effort": "high"}, False, False),
        ({"reasoning_effort": "none"}, True, False),
        ({"reasoning_effort": "minimal"}, False, True),
    ],
)
async def test_thinking_is_the_requests_choice_and_else_the_servers(start, ask, fields, server_thinks, thinks):
    async with start(thinking=server_thinks) as client:
        message = (await post(client, ask(**fields)))["choices"][0]["message"]
    expected = "Hmm." if thinks else None
    assert (message["reasoning"], message["reasoning_content"]) == (expected, expected)
    assert message["content"] == "You said: hi"


async def test_hidden_reasoning_is_counted_but_not_shown(client, ask):
    body = ask(include_reasoning=False, reasoning_effort="high")
    whole = await post(client, body)
    assert whole["choices"][0]["message"]["reasoning"] is None
    assert whole["usage"]["completion_tokens_details"] == {"reasoning_tokens": 5}
    assert "Hmm" not in json.dumps(await frames(client, body))


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
async def test_a_reply_is_cut_at_exactly_the_limit(client, ask, field):
    body = await post(client, ask(**{field: 6}))
    assert body["choices"][0]["message"]["content"] == "You sa"
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["usage"]["completion_tokens"] == 6


async def test_the_newer_name_of_the_limit_wins(client, ask):
    body = await post(client, ask(max_tokens=3, max_completion_tokens=5))
    assert body["usage"]["completion_tokens"] == 5


async def test_without_a_limit_the_servers_default_or_the_rest_of_the_context_counts(start, ask, engine: FakeEngine):
    async with start(default_max_tokens=9) as client:
        await post(client, ask("hi"))
    async with start() as client:
        await post(client, ask("hi"))
    assert [job.max_new_tokens for job in engine.jobs] == [9, 396]


async def test_a_limit_beyond_the_context_ends_with_the_context(client, ask, engine: FakeEngine):
    engine.answer = lambda said: "x" * 1000
    body = await post(client, ask("hello", max_tokens=10**6))
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["usage"]["total_tokens"] == 5 + 392


@pytest.mark.parametrize("stop", ["aid", ["zzz", "aid"], ["said: hi!", "aid"]])
async def test_a_stop_string_ends_the_reply_across_canvases(client, ask, stop):
    body = await post(client, ask(stop=stop))
    assert body["choices"][0]["message"]["content"] == "You s"
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["usage"]["completion_tokens"] == len("You said")


async def test_a_stop_string_that_never_completes_loses_nothing(client, ask):
    body = await post(client, ask(stop="hi!"))
    assert body["choices"][0]["message"]["content"] == "You said: hi"


async def test_a_stop_string_in_the_reasoning_does_not_end_the_reply(client, ask):
    body = await post(client, ask(stop="Hmm", reasoning_effort="high"))
    assert body["choices"][0]["message"]["content"] == "You said: hi"


async def test_a_stop_string_frees_the_engine(client, ask, engine: FakeEngine, eventually):
    engine.answer = lambda said: "stop" + "x" * 300
    await post(client, ask("hold", stop="stop"))
    engine.release.set()
    await eventually(lambda: engine.ended == ["abandoned"])


@pytest.mark.parametrize("fields", [{}, {"stop": "hi!"}])
async def test_an_end_token_that_the_engine_goes_on_after_ends_the_reply(
    client, ask, engine: FakeEngine, eventually, fields
):
    engine.answer = lambda said: f"hi{END}" + "x" * 300
    body = ask("hold", **fields)
    whole = await post(client, body)
    engine.release.set()
    await eventually(lambda: engine.ended == ["abandoned"])
    *chunks, last = await frames(client, body | {"stream_options": {"include_usage": True}})
    assert whole["choices"][0]["message"]["content"] == joined(chunks, "content") == "hi"
    assert whole["choices"][0]["finish_reason"] == chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert whole["usage"]["completion_tokens"] == last["usage"]["completion_tokens"] == 3
    assert whole["usage"]["diffusion"]["canvases"] == 1


@pytest.mark.parametrize("seed", [-(2**63), -1, 0, 2**63 - 1])
async def test_a_seed_is_any_signed_64_bit_integer(client, ask, engine: FakeEngine, seed):
    assert (await post(client, ask(seed=seed)))["usage"]["diffusion"]["seed"] == seed
    assert engine.jobs[0].seed == seed


async def test_seed_and_temperature_reach_the_engine(client, ask, engine: FakeEngine):
    await post(client, ask(seed=-5, temperature=0))
    await post(client, ask(temperature=0.5))
    assert [(job.seed, job.temperature) for job in engine.jobs[:1]] == [(-5, 0.0)]
    assert engine.jobs[1].temperature == 0.5


async def test_a_request_without_a_seed_learns_the_one_it_got(start, ask, engine: FakeEngine):
    drawn = []
    for _ in range(2):
        async with start(seed=42) as client:
            drawn.append([(await post(client, ask()))["usage"]["diffusion"]["seed"] for _ in range(3)])
    assert drawn[0] == drawn[1], "--seed makes the drawn seeds repeat"
    assert len(set(drawn[0])) == 3
    assert [job.seed for job in engine.jobs] == drawn[0] + drawn[1]


async def test_messages_reach_the_template_as_it_reads_them(client, engine: FakeEngine):
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    earlier = {"role": "assistant", "content": None, "reasoning_content": "why", "refusal": None, "tool_calls": None}
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "one", "name": "Ada"},
        earlier,
        {"role": "user", "content": parts},
    ]
    body = await post(client, {"model": "demo", "messages": messages})
    assert body["choices"][0]["message"]["content"] == "You said: ab"
    assert engine.rendered == [
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "one"},
            {"role": "assistant", "content": "", "reasoning": "why"},
            {"role": "user", "content": parts},
        ]
    ]


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"reasoning": "why"}, {"reasoning": "why"}),
        ({"reasoning_content": "why"}, {"reasoning": "why"}),
        ({"reasoning": "why", "reasoning_content": "why"}, {"reasoning": "why"}),
        ({"reasoning": "", "reasoning_content": None}, {}),
    ],
)
async def test_reasoning_is_sent_back_under_either_name(client, engine: FakeEngine, fields, wanted):
    answer = {"role": "assistant", "content": "x"}
    await post(client, {"model": "demo", "messages": [*HI, answer | fields, *HI]})
    assert engine.rendered[0][1] == answer | wanted


async def test_an_empty_thought_is_no_thought(client, ask, engine: FakeEngine):
    engine.answer = lambda said: OPEN_THOUGHT + CLOSE_THOUGHT + "yes"
    message = (await post(client, ask()))["choices"][0]["message"]
    assert (message["reasoning"], message["reasoning_content"], message["content"]) == (None, None, "yes")
    deltas = [chunk["choices"][0]["delta"] for chunk in await frames(client, ask())]
    assert not any("reasoning" in delta or "reasoning_content" in delta for delta in deltas)


async def test_a_reply_can_be_sent_back_as_history(sdk: openai.AsyncOpenAI):
    first = await sdk.chat.completions.create(model="demo", messages=HI, reasoning_effort="high")
    history = [*HI, first.choices[0].message.model_dump(), {"role": "user", "content": "more"}]
    second = await sdk.chat.completions.create(model="demo", messages=history)
    assert second.choices[0].message.content == "You said: more"


async def test_neutral_and_harmless_values_pass(client, ask):
    neutral = {
        "n": 1,
        "top_p": 1,
        "top_k": -1,
        "temperature": 1,
        "presence_penalty": 0,
        "frequency_penalty": 0.0,
        "repetition_penalty": 1.0,
        "logprobs": False,
        "top_logprobs": 0,
        "logit_bias": {},
        "tools": [],
        "tool_choice": "auto",
        "parallel_tool_calls": False,
        "service_tier": "default",
        "response_format": {"type": "text"},
        "stop": [],
        "modalities": ["text"],
        "stream": False,
    }
    harmless = {"user": "me", "metadata": {"a": "b"}, "store": True, "prompt_cache_key": "k"}
    assert await post(client, ask(**neutral, **harmless))


async def test_null_counts_as_absent(client, ask):
    names = "n top_p temperature seed stop stream stream_options max_tokens max_completion_tokens tools tool_choice"
    names += " response_format logit_bias logprobs chat_template_kwargs reasoning_effort include_reasoning functions"
    assert await post(client, ask(**dict.fromkeys(names.split())))


@pytest.mark.parametrize("name", ["demo", "DEMO", "org/alias", "Org/Alias"])
async def test_a_reply_names_the_model_as_it_was_asked_for(client, ask, name):
    assert (await post(client, ask() | {"model": name}))["model"] == name


async def test_models_are_listed_and_found_by_name(sdk: openai.AsyncOpenAI):
    listed = [model async for model in sdk.models.list()]
    assert [model.id for model in listed] == ["demo", "org/alias"]
    assert listed[0].max_model_len == 400
    for name in ("demo", "org/alias"):
        assert (await sdk.models.retrieve(name)).id == name
    with pytest.raises(openai.NotFoundError) as caught:
        await sdk.models.retrieve("org/other")
    assert caught.value.code == "model_not_found"


async def test_a_model_names_its_checkpoint_whatever_path_led_there(start, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    async with start(checkpoint=Path(".")) as client:
        assert (await (await client.get("/v1/models")).json())["data"][0]["root"] == tmp_path.name


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/v1/models/demo", "/v1/health/live", "/v1/health/ready"])
async def test_head_answers_as_get_does_without_a_body(client, path):
    whole, head = await client.get(path), await client.head(path)
    assert (head.status, head.content_type) == (200, whole.content_type)
    assert head.headers["Content-Length"] == whole.headers["Content-Length"]
    assert await head.read() == b""


@pytest.mark.parametrize("path", ["/health", "/v1/health/live", "/v1/health/ready"])
async def test_a_warm_server_is_healthy(client, path):
    response = await client.get(path)
    assert response.status == 200
    assert (await response.json())["object"] == "health.response"
