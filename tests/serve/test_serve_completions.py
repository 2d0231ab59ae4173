"""`/v1/completions`: raw text goes in and comes out, prompt by prompt, choice by choice."""

from __future__ import annotations

import asyncio
import json

import openai
import pytest
from fake_engine import FakeEngine
from fake_text import BOS
from test_serve_errors import error_of

from serve.completion_schema import NEUTRAL, CompletionRequest
from serve.schema import HARMLESS

URL = "/v1/completions"


def asking(prompt="hi", **fields):
    return {"model": "demo", "prompt": prompt} | fields


async def test_a_text_is_continued_without_the_chat_template(client, engine: FakeEngine):
    body = await (await client.post(URL, json=asking())).json()
    assert body["id"].startswith("cmpl-") and body["object"] == "text_completion" and body["model"] == "demo"
    assert body["choices"] == [{"index": 0, "text": "You said: hi", "logprobs": None, "finish_reason": "stop"}]
    assert body["usage"]["prompt_tokens"] == 3 and body["usage"]["completion_tokens"] == 13
    assert engine.rendered == [] and engine.jobs[0].prompt == tuple(map(ord, BOS + "hi"))


@pytest.mark.parametrize("prompt", [["a", "b"], [[97], [98]]])
async def test_every_prompt_of_a_list_gets_its_choices_in_order(client, prompt):
    body = await (await client.post(URL, json=asking(prompt, n=2))).json()
    assert [(choice["index"], choice["text"][-1]) for choice in body["choices"]] == list(enumerate("aabb"))
    once = sum(1 + isinstance(given, str) for given in prompt)
    assert body["usage"]["prompt_tokens"] == once, "a prompt counts once"
    assert body["usage"]["completion_tokens"] == 4 * 12
    assert body["usage"]["total_tokens"] == once + 4 * 12


async def test_a_list_of_tokens_is_one_prompt_taken_as_it_is(client, engine: FakeEngine):
    body = await (await client.post(URL, json=asking([104, 105]))).json()
    assert [choice["text"] for choice in body["choices"]] == ["You said: hi"]
    assert engine.jobs[0].prompt == (104, 105)


async def test_a_prompt_of_a_list_gets_the_seed_it_would_get_alone(client, engine: FakeEngine):
    await client.post(URL, json=asking(["a", "b"], n=2, seed=5))
    assert [job.seed for job in engine.jobs] == [5, 6, 5, 6]


@pytest.mark.parametrize("fields", [{}, {"stop": "aid"}, {"max_tokens": 6}, {"n": 2}])
async def test_a_stream_carries_the_same_as_a_whole_answer(client, fields):
    whole = await (await client.post(URL, json=asking(["a", "b"], seed=1, **fields))).json()
    fields |= {"stream": True, "stream_options": {"include_usage": True}}
    text = await (await client.post(URL, json=asking(["a", "b"], seed=1, **fields))).text()
    *frames, done, _ = text.split("\n\n")
    assert done == "data: [DONE]"
    *chunks, last = [json.loads(frame.removeprefix("data: ")) for frame in frames]
    assert last["choices"] == [] and last["usage"] == whole["usage"]
    assert all(chunk["usage"] is None and chunk["object"] == "text_completion" for chunk in chunks)
    parts = [chunk["choices"][0] for chunk in chunks]
    assert [part["index"] for part in parts] == sorted(part["index"] for part in parts), "one after the other"
    for choice in whole["choices"]:
        own = [part for part in parts if part["index"] == choice["index"]]
        assert "".join(part["text"] for part in own) == choice["text"]
        assert [part["finish_reason"] for part in own] == [None] * (len(own) - 1) + [choice["finish_reason"]]


async def test_a_stop_string_frees_the_engine_for_the_next_choice(client, engine: FakeEngine):
    body = await (await client.post(URL, json=asking(["a" * 150, "b"], stop="You", max_tokens=200))).json()
    assert [(choice["text"], choice["finish_reason"]) for choice in body["choices"]] == [("", "stop")] * 2
    assert engine.ended[0] == "abandoned"


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"suffix": "x"}, "suffix", "unsupported_parameter"),
        ({"best_of": 2}, "best_of", "unsupported_parameter"),
        ({"logprobs": True}, "logprobs", "invalid_value"),
        ({"logprobs": 21}, "logprobs", "invalid_value"),
        ({"top_p": 2}, "top_p", "invalid_value"),
        ({"top_k": -2}, "top_k", "invalid_value"),
        ({"echo": True}, "echo", "unsupported_parameter"),
        ({"fancy": 1}, "fancy", "unknown_parameter"),
        ({"messages": []}, "messages", "unknown_parameter"),
        ({"prompt": None}, "prompt", "invalid_value"),
        ({"prompt": []}, "prompt", "invalid_value"),
        ({"prompt": ["a", 1]}, "prompt", None),
        ({"prompt": [[1], []]}, "prompt[1]", "invalid_value"),
        ({"prompt": [-1]}, "prompt[0]", "invalid_value"),
        ({"prompt": [2**30]}, "prompt", "invalid_value"),
        ({"prompt": ["a", "\x06"]}, "prompt[1]", "invalid_value"),
        ({"prompt": "x" * 400}, "prompt", "context_length_exceeded"),
        ({"prompt": ["a", "x" * 9000]}, "prompt[1]", "context_length_exceeded"),
        ({"prompt": ["a"] * 66}, "prompt", None),
        ({"prompt": ["a"] * 10, "n": 8}, "n", None),
        ({"n": 9}, "n", "invalid_value"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"stream_options": {}}, "stream_options", None),
        ({"diffusion": {"t_min": 3, "t_max": 2}}, "diffusion.t_min", "invalid_value"),
    ],
)
async def test_what_cannot_be_done_is_a_400_that_names_the_field(client, engine: FakeEngine, fields, param, code):
    error = await error_of(await client.post(URL, json=asking() | fields))
    assert error["param"] == param
    assert code is None or error["code"] == code
    assert not engine.jobs, "refused before any work"


async def test_fields_that_ask_for_nothing_pass(client):
    nothing = {name: values[0] for name, values in NEUTRAL.items() if values} | dict.fromkeys(HARMLESS, "x")
    assert (await client.post(URL, json=asking(**nothing))).status == 200
    assert not set(CompletionRequest.__struct_fields__) & (NEUTRAL.keys() | HARMLESS)


async def test_an_engine_that_fails_gives_an_error_whole_and_streamed(client):
    prompt = list(map(ord, "explode"))
    assert (await error_of(await client.post(URL, json=asking(prompt)), 500))["code"] == "internal_error"
    text = await (await client.post(URL, json=asking(prompt, stream=True))).text()
    assert '"code":"internal_error"' in text and text.endswith("data: [DONE]\n\n")


async def test_a_silent_stream_is_kept_alive(start, engine: FakeEngine):
    async with start(heartbeat_seconds=0.01) as client:
        response = await client.post(URL, json=asking("hold", stream=True))
        frames = [json.loads((await response.content.readuntil(b"\n\n"))[6:]) for _ in range(4)]
        assert "" in [frame["choices"][0]["text"] for frame in frames]
        engine.release.set()
        assert (await response.text()).endswith("data: [DONE]\n\n")


async def test_a_client_that_goes_away_frees_every_place(start, engine: FakeEngine, eventually):
    async with start(max_queue=1) as client:
        gone = asyncio.create_task(client.post(URL, json=asking(["hold", "b"])))
        await eventually(lambda: len(engine.jobs) == 1)
        assert (await client.post(URL, json=asking())).status == 429
        gone.cancel()
        engine.release.set()
        await eventually(lambda: bool(engine.ended))
        assert (await client.post(URL, json=asking(["a", "b"]))).status == 200


async def test_the_official_client_reads_it(sdk: openai.AsyncOpenAI):
    whole = await sdk.completions.create(model="demo", prompt="hi", max_tokens=7)
    assert (whole.choices[0].text, whole.choices[0].finish_reason) == ("You sai", "length")
    stream = await sdk.completions.create(model="demo", prompt="hi", stream=True)
    assert "".join([chunk.choices[0].text async for chunk in stream]) == "You said: hi"


async def test_after_the_largest_seed_comes_the_smallest(client, engine: FakeEngine):
    await client.post(URL, json=asking("a", n=2, seed=2**63 - 1))
    assert [job.seed for job in engine.jobs] == [2**63 - 1, -(2**63)]
