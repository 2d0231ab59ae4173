"""Every refusal: OpenAI's error object, the right status, and `param` naming the field."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from fake_engine import FakeEngine

from serve.schema import HARMLESS, NEUTRAL, ChatRequest

URL = "/v1/chat/completions"
USER = {"role": "user", "content": "x"}


async def error_of(response, status: int = 400) -> dict:
    text = await response.text()
    assert response.status == status, text
    assert response.content_type == "application/json"
    assert "Traceback" not in text
    error = json.loads(text)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"model": None}, "model", "invalid_value"),
        ({"messages": None}, "messages", "invalid_value"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": "hi"}, "messages", "invalid_value"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content", "invalid_value"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content", "invalid_value"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content", "invalid_value"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "missing_required_parameter"),
        ({"messages": [{"content": "x"}]}, "messages[0].role", "missing_required_parameter"),
        ({"messages": [USER, {"role": "wizard", "content": "x"}]}, "messages[1].role", "invalid_value"),
        ({"messages": [USER | {"mood": 1}]}, "messages[0].mood", "unknown_parameter"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text", None),
        ({"messages": [{"role": "user", "content": [{"type": "smell"}]}]}, "messages[0].content[0].type", None),
        ({"messages": [USER, {"role": "tool", "tool_call_id": "1", "content": "x"}]}, "messages[1].tool_call_id", None),
        ({"messages": [{"role": "function", "name": "f", "content": "x"}]}, "messages[0].role", None),
        ({"messages": [USER, {"role": "assistant", "tool_calls": [{}]}]}, "messages[1].tool_calls[0].id", None),
        ({"messages": [{"role": "user", "content": "refuse"}]}, "messages", None),
        ({"temperature": 2.5}, "temperature", "invalid_value"),
        ({"temperature": "hot"}, "temperature", "invalid_value"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"max_tokens": 2.5}, "max_tokens", "invalid_value"),
        ({"seed": 2**64}, "seed", "invalid_value"),
        ({"seed": 1.5}, "seed", "invalid_value"),
        ({"stop": ""}, "stop", "invalid_value"),
        ({"stop": ["a", ""]}, "stop[1]", "invalid_value"),
        ({"stop": list("abcde")}, "stop", "invalid_value"),
        ({"stream": "yes"}, "stream", "invalid_value"),
        ({"stream_options": {"include_usage": True}}, "stream_options", None),
        ({"stream": True, "stream_options": {"frequency": 1}}, "stream_options.frequency", "unknown_parameter"),
        ({"chat_template_kwargs": {"thinking": "no"}}, "chat_template_kwargs.thinking", "invalid_value"),
        ({"chat_template_kwargs": {"style": 1}}, "chat_template_kwargs.style", "unknown_parameter"),
        ({"chat_template_kwargs": {"thinking": True, "enable_thinking": False}}, "chat_template_kwargs", None),
        ({"reasoning_effort": "heroic"}, "reasoning_effort", "invalid_value"),
        ({"fancy": 1}, "fancy", "unknown_parameter"),
        ({"": 1}, "", "unknown_parameter"),
        ({"messages": [USER | {"": 1}]}, "messages[0].", "unknown_parameter"),
        ({"service_tier": "flex"}, "service_tier", "unsupported_parameter"),
        ({"parallel_tool_calls": "sometimes"}, "parallel_tool_calls", "invalid_value"),
        ({"n": 0}, "n", "invalid_value"),
        ({"n": 9}, "n", "invalid_value"),
        ({"n": True}, "n", "invalid_value"),
        ({"top_p": 1.1}, "top_p", "invalid_value"),
        ({"top_p": -0.1}, "top_p", "invalid_value"),
        ({"top_k": -2}, "top_k", "invalid_value"),
        ({"top_k": 1.5}, "top_k", "invalid_value"),
        ({"top_k": 2**31}, "top_k", "invalid_value"),
        ({"logprobs": 1}, "logprobs", "invalid_value"),
        ({"top_logprobs": 3}, "top_logprobs", None),
        ({"logprobs": False, "top_logprobs": 3}, "top_logprobs", None),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
        ({"logprobs": True, "top_logprobs": -1}, "top_logprobs", "invalid_value"),
        ({"presence_penalty": 0.5}, "presence_penalty", "unsupported_parameter"),
        ({"logit_bias": {"5": 1}}, "logit_bias", "unsupported_parameter"),
        ({"tools": [{"type": "function"}]}, "tools[0].function", "missing_required_parameter"),
        ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools[0].type", "invalid_value"),
        ({"tools": [{"type": "function", "function": {"name": "two words"}}]}, "tools[0].function.name", None),
        ({"tools": [{"type": "function", "function": {"name": "line\n"}}]}, "tools[0].function.name", None),
        ({"tools": [{"type": "function", "function": {"name": "x" * 65}}]}, "tools[0].function.name", None),
        ({"tools": [{"type": "function", "function": {"name": "f"}}] * 2}, "tools[1].function.name", None),
        ({"tool_choice": "required"}, "tool_choice", "invalid_value"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice", "invalid_value"),
        ({"tool_choice": {"type": "function"}}, "tool_choice.function", "missing_required_parameter"),
        ({"tool_choice": {"type": "custom", "custom": {"name": "f"}}}, "tool_choice.type", "invalid_value"),
        ({"tool_choice": "sometimes"}, "tool_choice", "invalid_value"),
        ({"diffusion": {"max_steps": 0}}, "diffusion.max_steps", "invalid_value"),
        ({"diffusion": {"entropy_bound": 0}}, "diffusion.entropy_bound", "invalid_value"),
        ({"diffusion": {"confidence_threshold": -1}}, "diffusion.confidence_threshold", "invalid_value"),
        ({"diffusion": {"t_min": 0.8}}, "diffusion.t_min", "invalid_value"),
        ({"diffusion": {"t_max": 0.4}}, "diffusion.t_max", "invalid_value"),
        ({"diffusion": {"t_min": 0, "t_max": 1e-44}}, "diffusion.t_max", "invalid_value"),
        ({"diffusion": {"canvas": 1}}, "diffusion.canvas", "unknown_parameter"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "invalid_value"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "missing_required_parameter"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n"}}},
            "response_format.json_schema.schema",
            "missing_required_parameter",
        ),
        ({"structured_outputs": {}}, "structured_outputs", "invalid_value"),
        ({"structured_outputs": {"choice": ["a"], "regex": "a"}}, "structured_outputs", "invalid_value"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice", "invalid_value"),
        ({"structured_outputs": {"grammar": "x"}}, "structured_outputs.grammar", "unknown_parameter"),
        (
            {"response_format": {"type": "json_object"}, "structured_outputs": {"choice": ["a"]}},
            "structured_outputs",
            "invalid_value",
        ),
        ({"structured_outputs": {"regex": "refuse"}}, "structured_outputs.regex", "invalid_value"),
    ],
)
async def test_what_cannot_be_done_is_a_400_that_names_the_field(client, ask, engine, fields, param, code):
    for stream in ({}, {"stream": True}):
        if "stream_options" in fields or "stream" in fields:
            stream = {}
        error = await error_of(await client.post(URL, json=ask() | stream | fields))
        assert error["type"] == "invalid_request_error"
        assert error["param"] == param
        if code:
            assert error["code"] == code
    assert not engine.jobs, "refused before any work"


@pytest.mark.parametrize("kind", ["image_url", "video_url", "input_audio", "file"])
async def test_media_that_the_model_does_not_read_are_refused_by_the_place_they_stand_at(client, engine, kind):
    engine.media = frozenset()
    content = [{"type": "text", "text": "see"}, {"type": kind, kind: {"url": "data:image/png;base64,AAAA"}}]
    body = {"model": "demo", "messages": [{"role": "user", "content": content}]}
    error = await error_of(await client.post(URL, json=body))
    assert (error["param"], error["code"]) == ("messages[0].content[1]", "unsupported_content")
    assert "does not read" in error["message"]


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"nonsense", b"[1]", b"3", b'{"model": "\xff"}', b'{"a":' * 5000, b"[" * 100_000, b'{"a": NaN}'],
    ids=["empty", "cut", "words", "list", "number", "not-utf8", "deep-objects", "deep-lists", "not-a-number"],
)
async def test_a_body_that_is_no_json_object_is_a_400(client, body):
    response = await client.post(URL, data=body, headers={"Content-Type": "application/json"})
    assert (await error_of(response))["code"] == "invalid_json"


@pytest.mark.parametrize("name", ["model", "messages"])
async def test_a_field_that_is_left_out_is_not_the_same_as_null(client, ask, name):
    body = ask()
    del body[name]
    error = await error_of(await client.post(URL, json=body))
    assert (error["param"], error["code"]) == (name, "missing_required_parameter")
    error = await error_of(await client.post(URL, json=body | {name: None}))
    assert f"Expected `{'str' if name == 'model' else 'array'}`, got `null`" in error["message"]


@pytest.mark.parametrize(
    ("body", "param", "said"),
    [
        (b'{"temperature": 1e400}', "temperature", "number is out of range"),
        (b'{"a": [1, {"b": -1e400}]}', "a[1].b", "number is out of range"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "seed", "number is out of range"),
        (b"[1e400]", "[0]", "number is out of range"),
        (b'{"messages": [{"content": "\\ud800"}]}', "messages[0].content", "half a character"),
        (b'{"model": "a\\ud800\\u0041 and more"}', "model", "half a character"),
        (b'{"x": {"\\udc00 and more": 1}}', "x", "half a character"),
        (b'{"\\udc00 and more": 1}', None, "half a character"),
    ],
)
async def test_json_that_cannot_be_held_is_named_by_its_place(client, body, param, said):
    error = await error_of(await client.post(URL, data=body, headers={"Content-Type": "application/json"}))
    assert (error["param"], error["code"]) == (param, "invalid_value")
    assert said in error["message"]
    assert "not valid JSON" not in error["message"] and "truncated" not in error["message"]


@pytest.mark.parametrize("path", [URL, "/health", "/v1/nothing"])
async def test_an_unknown_expectation_is_a_417(client, ask, path):
    method = client.post if path == URL else client.get
    response = await method(path, json=ask(), headers={"Expect": "a-miracle", "x-request-id": "mine"})
    assert (response.status, response.headers["x-request-id"]) == (417, "mine")
    if path != "/v1/nothing":  # aiohttp's own text there: no route, no handler
        assert (await error_of(response, 417))["code"] == "expectation_failed"
    assert (await client.get("/health")).status == 200


async def test_a_client_that_waits_to_be_asked_is_asked(client, ask):
    assert (await client.post(URL, json=ask(), expect100=True)).status == 200


async def test_other_methods_are_told_which_are_taken(client):
    for path, allowed in ((URL, "POST"), ("/v1/models", "GET,HEAD"), ("/health", "GET,HEAD")):
        response = await client.options(path)
        assert (await error_of(response, 405))["code"] == "method_not_allowed"
        assert response.headers["Allow"] == allowed


@pytest.mark.parametrize("name", ["nothing", "org/nothing"])
async def test_an_unknown_model_is_a_404_that_names_the_known_ones(client, name):
    error = await error_of(await client.get(f"/v1/models/{name}"), 404)
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert "demo" in error["message"]


async def test_a_body_of_another_type_is_a_415(client, ask):
    error = await error_of(await client.post(URL, data=ask()["messages"][0]), 415)
    assert "application/json" in error["message"]


async def test_a_body_whose_compression_is_broken_is_an_error_object(client):
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    await error_of(await client.post(URL, data=b"this is not gzip", headers=headers))


async def test_a_body_without_a_type_is_read(client, ask):
    response = await client.post(URL, data=json.dumps(ask()), skip_auto_headers={"Content-Type"})
    assert response.status == 200


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_that_is_too_large_is_a_413(start, chunked):
    body = b'{"model": "' + b"x" * (2**20 + 1000) + b'"}'

    async def pieces():
        yield body

    async with start(max_body_mib=1) as client:
        data = pieces() if chunked else io.BytesIO(body)
        response = await client.post(URL, data=data, headers={"Content-Type": "application/json"})
        error = await error_of(response, 413)
        assert error["code"] == "request_too_large"
        assert (await client.get("/health")).status == 200


async def test_an_unknown_route_and_a_wrong_method_are_error_objects(client):
    assert (await error_of(await client.get("/v1/nothing"), 404))["code"] == "unknown_url"
    response = await client.get(URL)
    assert (await error_of(response, 405))["code"] == "method_not_allowed"
    assert response.headers["Allow"] == "POST"


async def test_a_prompt_that_is_too_long_is_refused_before_the_stream_opens(client, ask):
    for stream in (False, True):
        error = await error_of(await client.post(URL, json=ask("x" * 398, stream=stream)))
        assert (error["param"], error["code"]) == ("messages", "context_length_exceeded")
        assert "398" in error["message"] and "400" in error["message"]


async def test_text_that_cannot_fit_is_a_prompt_that_is_too_long(client, ask):
    error = await error_of(await client.post(URL, json=ask("x" * 10_000)))
    assert (error["param"], error["code"]) == ("messages", "context_length_exceeded")
    assert "at least 10000 tokens" in error["message"] and "400" in error["message"]


async def test_a_request_id_is_echoed_or_made(client):
    echoed = await client.get("/v1/models", headers={"x-request-id": "mine-1"})
    assert echoed.headers["x-request-id"] == "mine-1"
    for given in ("", "two words", "x" * 200):
        made = (await client.get("/v1/nothing", headers={"x-request-id": given})).headers["x-request-id"]
        assert re.fullmatch("req-[0-9a-f]{32}", made)


async def test_one_log_line_per_request_and_no_prompt_in_it(client, ask, caplog):
    caplog.set_level("INFO")
    await client.post(URL, json=ask("my secret"), headers={"x-request-id": "a"})
    await client.post(URL, json=ask("my secret", logit_bias={"5": 1}), headers={"x-request-id": "b"})
    lines = [json.loads(record.message) for record in caplog.records if record.name == "serve.access"]
    for line in lines:
        assert line.pop("ms") >= 0
    common = {"method": "POST", "path": URL}
    assert lines == [
        {"id": "a", "status": 200, "prompt_tokens": 9, "completion_tokens": 20} | common,
        {"id": "b", "status": 400, "error": "unsupported_parameter"} | common,
    ]
    assert "secret" not in caplog.text


async def test_a_bug_of_ours_is_a_500_that_tells_nothing(client, ask, engine: FakeEngine, caplog, monkeypatch):
    def broken(*_, **__):
        raise KeyError("a secret of ours")

    monkeypatch.setattr(engine, "render", broken)
    response = await client.post(URL, json=ask(), headers={"x-request-id": "find-me"})
    error = await error_of(response, 500)
    assert error["type"] == "server_error"
    assert "secret" not in error["message"] and "find-me" in error["message"]
    assert "a secret of ours" in caplog.text and "find-me" in caplog.text


def test_the_readme_names_every_field_that_has_no_effect():
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    [sentence] = re.findall(r"^Taken without effect[^:]*: ([^.]*)\.", readme, re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", sentence)) == HARMLESS | {"name"}


def test_a_field_is_done_harmless_or_neutral_and_never_two_of_them():
    done = set(ChatRequest.__struct_fields__)
    assert not (done & HARMLESS or done & NEUTRAL.keys() or HARMLESS & NEUTRAL.keys())
