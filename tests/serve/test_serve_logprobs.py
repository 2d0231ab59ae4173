"""`logprobs`, `top_p` and `top_k` on the wire: OpenAI's shapes, in step with the text, whole and streamed."""

from __future__ import annotations

import json
from itertools import accumulate

import openai
import pytest
from fake_engine import CLOSE_THOUGHT, END, OPEN_THOUGHT, FakeEngine, call

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
TOOLS = [{"type": "function", "function": {"name": "f"}}]


async def post(client, url, body):
    response = await client.post(url, json=body)
    assert response.status == 200, await response.text()
    return await response.json()


async def chunks(client, url, body):
    *data, done, _ = (await (await client.post(url, json=body | {"stream": True})).text()).split("\n\n")
    assert done == "data: [DONE]"
    return [json.loads(frame.removeprefix("data: ")) for frame in data]


def prompt(text="hi", **fields):
    return {"model": "demo", "prompt": text, **fields}


async def test_a_token_of_the_answer_has_openais_fields(client, ask):
    body = await post(client, CHAT, ask("\u00e9", logprobs=True, top_logprobs=2))
    logprobs = body["choices"][0]["logprobs"]
    assert set(logprobs) == {"content", "refusal"} and logprobs["refusal"] is None
    assert logprobs["content"][-1] == {
        "token": "\u00e9",
        "logprob": -0.233,
        "bytes": [0xC3, 0xA9],
        "top_logprobs": [
            {"token": "\u00e9", "logprob": -0.233, "bytes": [0xC3, 0xA9]},
            {"token": "\u00ea", "logprob": -1.233, "bytes": [0xC3, 0xAA]},
        ],
    }
    assert "".join(token["token"] for token in logprobs["content"]) == "You said: \u00e9"


@pytest.mark.parametrize("fields", [{}, {"logprobs": False}, {"logprobs": None, "top_logprobs": None}])
async def test_who_does_not_ask_gets_null(client, ask, engine: FakeEngine, fields):
    assert (await post(client, CHAT, ask(**fields)))["choices"][0]["logprobs"] is None
    assert {chunk["choices"][0]["logprobs"] for chunk in await chunks(client, CHAT, ask(**fields))} == {None}
    assert [job.logprobs for job in engine.jobs] == [None, None]


async def test_without_top_logprobs_only_the_tokens_own_are_told(client, ask, engine: FakeEngine):
    body = await post(client, CHAT, ask(logprobs=True))
    assert {len(token["top_logprobs"]) for token in body["choices"][0]["logprobs"]["content"]} == {0}
    assert engine.jobs[0].logprobs == 0


@pytest.mark.parametrize(
    ("answer", "fields", "shown"),
    [
        (f"{OPEN_THOUGHT}Hm{CLOSE_THOUGHT}Yes", {}, "Yes"),
        (f"{OPEN_THOUGHT}Hm{CLOSE_THOUGHT}Yes", {"include_reasoning": False}, "Yes"),
        ("one two three", {"stop": " t"}, "one"),
        ("one two three", {"stop": "threes"}, "one two three"),
        ("one two", {"max_tokens": 5}, "one t"),
        ("a" + call("f", '{"a": 1}') + "b", {"tools": TOOLS}, "ab"),
        (call("f"), {"tools": TOOLS}, ""),
        ("caf\u00e9 \U0001f642" + END + "x", {}, "caf\u00e9 \U0001f642"),
    ],
)
async def test_the_tokens_are_those_of_the_content_whole_and_streamed(client, ask, engine, answer, fields, shown):
    engine.answer = lambda _: answer
    body = ask(logprobs=True, seed=1, **fields)
    whole = (await post(client, CHAT, body))["choices"][0]
    assert "".join(token["token"] for token in whole["logprobs"]["content"]) == shown
    assert shown == (whole["message"]["content"] or "")
    parts = [chunk["choices"][0] for chunk in await chunks(client, CHAT, body)]
    told = [part for part in parts if part["logprobs"]]
    assert all("content" in part["delta"] for part in told), "only the answer has them"
    assert [token for part in told for token in part["logprobs"]["content"]] == whole["logprobs"]["content"]


async def test_every_choice_has_its_own(client, ask):
    body = await post(client, CHAT, ask(logprobs=True, n=2))
    assert [len(choice["logprobs"]["content"]) for choice in body["choices"]] == [12, 12]


async def test_text_for_a_call_that_nobody_declared_goes_untold(client, ask, engine: FakeEngine):
    engine.answer = lambda _: "a" + call("f") + "b"
    choice = (await post(client, CHAT, ask(logprobs=True)))["choices"][0]
    assert choice["message"]["content"] == "af({})b"
    assert [token["token"] for token in choice["logprobs"]["content"]] == ["a", "b"]


async def test_completions_have_the_older_shape(client):
    body = await post(client, TEXT, prompt("a", logprobs=1, max_tokens=2))
    assert body["choices"][0]["logprobs"] == {
        "text_offset": [0, 1],
        "token_logprobs": [-0.089, -0.111],
        "tokens": ["Y", "o"],
        "top_logprobs": [{"Y": -0.089}, {"o": -0.111}],
    }


async def test_zero_tells_of_the_token_itself(client, engine: FakeEngine):
    body = await post(client, TEXT, prompt("a", logprobs=0, max_tokens=1))
    assert body["choices"][0]["logprobs"]["top_logprobs"] == [{"Y": -0.089}]
    assert engine.jobs[0].logprobs == 0
    assert (await post(client, TEXT, prompt()))["choices"][0]["logprobs"] is None


async def test_offsets_go_on_through_a_stream_and_begin_anew_with_each_choice(client):
    body = prompt(["a", "b"], logprobs=2, stop="id: ")
    whole = (await post(client, TEXT, body))["choices"]
    parts = [chunk["choices"][0] for chunk in await chunks(client, TEXT, body)]
    for choice in whole:
        tokens = choice["logprobs"]["tokens"]
        assert "".join(tokens) == choice["text"] == "You sa"
        assert choice["logprobs"]["text_offset"] == list(accumulate(map(len, tokens[:-1]), initial=0))
        for name, values in choice["logprobs"].items():
            told = [part for part in parts if part["index"] == choice["index"] and part["logprobs"]]
            assert [value for part in told for value in part["logprobs"][name]] == values


@pytest.mark.parametrize("fields", [{"top_p": 0.5, "top_k": 7}, {"top_p": 0, "top_k": 1}])
@pytest.mark.parametrize("url", [CHAT, TEXT])
async def test_top_p_and_top_k_reach_the_engine(client, ask, engine: FakeEngine, url, fields):
    await post(client, url, (ask() if url == CHAT else prompt()) | fields)
    assert (engine.jobs[0].top_p, engine.jobs[0].top_k) == (fields["top_p"], fields["top_k"])


async def test_minus_one_turns_top_k_off(client, ask, engine: FakeEngine):
    await post(client, CHAT, ask(top_k=-1, top_p=1))
    assert (engine.jobs[0].top_p, engine.jobs[0].top_k) == (1.0, 0)


async def test_usage_says_how_much_of_the_prompt_was_cached(client, ask, engine: FakeEngine):
    engine.cached_tokens = 2
    assert (await post(client, CHAT, ask(n=2)))["usage"]["prompt_tokens_details"] == {"cached_tokens": 2}
    usage = (await post(client, TEXT, prompt(["a", "b"], n=2)))["usage"]
    assert usage["prompt_tokens_details"] == {"cached_tokens": 4}, "once for each prompt"


async def test_the_official_client_reads_them(sdk: openai.AsyncOpenAI):
    ask = {"model": "demo", "messages": [{"role": "user", "content": "hi"}], "logprobs": True, "top_logprobs": 1}
    whole = await sdk.chat.completions.create(**ask, top_p=0.9)
    assert [token.token for token in whole.choices[0].logprobs.content] == list("You said: hi")
    assert whole.usage.prompt_tokens_details.cached_tokens == 0
    stream = await sdk.chat.completions.create(**ask, stream=True)
    told = [chunk.choices[0].logprobs async for chunk in stream]
    tokens = [token for logprobs in told if logprobs for token in logprobs.content]
    assert "".join(bytes(token.bytes).decode() for token in tokens) == "You said: hi"
    assert all(token.top_logprobs[0].logprob == token.logprob for token in tokens)
    older = await sdk.completions.create(model="demo", prompt="hi", logprobs=2)
    assert "".join(older.choices[0].logprobs.tokens) == "You said: hi"
