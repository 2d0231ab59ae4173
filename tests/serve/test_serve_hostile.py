"""Clients that mean no good: what is no HTTP, what never ends, and what is larger than it looks."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from typing import Any

from serve import access, bodies, encode, sse, tools

URL = "/v1/chat/completions"
JSON = {"Content-Type": "application/json"}


async def refused(client: Any, body: str) -> dict[str, Any]:
    response = await client.post(URL, data=body, headers=JSON)
    assert response.status == 400
    return (await response.json())["error"]


async def test_what_is_no_http_is_one_line_without_its_bytes(client, caplog):
    caplog.set_level("INFO")
    log = logging.getLogger("aiohttp.server")
    before = list(log.filters)
    access.log_what_is_no_http()
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
        writer.write(b"GET /health HTTP/1.1\r\nHost: a\r\nmy secret\r\n\r\n")
        assert b" 400 " in (await reader.read()).splitlines()[0]
        writer.close()
        log.error("a fault of ours")
    finally:
        log.filters[:] = before
    said = {record.name: record.getMessage() for record in caplog.records if record.name != "aiohttp.access"}
    assert said == {"serve.access": '{"status":400,"error":"invalid_http"}', "aiohttp.server": "a fault of ours"}


async def test_a_body_whose_compression_is_broken_is_one_line(client, caplog):
    caplog.set_level("INFO")
    log = logging.getLogger("aiohttp.server")
    before = list(log.filters)
    access.log_what_is_no_http()
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
        head = f"POST {URL} HTTP/1.1\r\nHost: a\r\nContent-Encoding: gzip\r\nContent-Length: 9\r\n\r\n"
        writer.write(head.encode() + b"my secret")
        assert b" 400 " in (await reader.read()).splitlines()[0]
        writer.close()
    finally:
        log.filters[:] = before
    assert [record.name for record in caplog.records if record.name != "aiohttp.access"] == ["serve.access"]


async def test_a_body_that_never_ends_is_a_408(client, monkeypatch):
    monkeypatch.setattr(bodies, "BODY_SECONDS", 0.05)
    reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
    writer.write(f"POST {URL} HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n{{".encode())
    head, _, body = (await reader.readuntil(b"}}")).partition(b"\r\n\r\n")
    writer.close()
    assert b" 408 " in head.splitlines()[0] and b"Connection: close" in head
    assert json.loads(body)["error"]["code"] == "request_timeout"


async def test_a_body_that_is_still_on_its_way_when_the_server_stops_is_a_503(client):
    reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
    writer.write(f"POST {URL} HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n".encode())
    assert b" 100 " in await reader.readuntil(b"\r\n\r\n"), "the handler is at work"
    await client.server.runner.app.shutdown()
    head, _, body = (await reader.readuntil(b"}}")).partition(b"\r\n\r\n")
    writer.close()
    assert b" 503 " in head.splitlines()[0] and json.loads(body)["error"]["code"] == "unavailable"


async def test_a_body_of_too_many_values_is_refused_before_it_is_decoded(client, monkeypatch):
    monkeypatch.setattr(bodies, "_MOST_TOKENS", 400)
    for value in (["a"] * 400, [[]] * 200, [{}] * 200, list(range(401)), {str(key): 1 for key in range(201)}):
        error = await refused(client, json.dumps({"user": value}, separators=(",", ":")))
        assert error["code"] == "request_too_large" and "400" in error["message"], value


async def test_text_is_one_value_whatever_is_in_it(client, ask, monkeypatch):
    monkeypatch.setattr(bodies, "_MOST_TOKENS", 100)
    assert (await client.post(URL, json=ask('["",{' * 70))).status == 200


async def test_more_messages_and_parts_than_positions_do_not_fit(client, ask):
    empty = {"role": "user", "content": [{"type": "text", "text": ""}] * 400}
    for messages in (ask()["messages"] * 401, [empty]):
        error = await refused(client, json.dumps(ask() | {"messages": messages}))
        assert (error["param"], error["code"]) == ("messages", "context_length_exceeded")
        assert "401 messages and parts" in error["message"]


async def test_tools_and_arguments_that_hold_too_much_are_refused_before_they_are_rendered(client, ask, monkeypatch):
    monkeypatch.setattr(tools, "_MOST_TOKENS", 100)
    tool = {"type": "function", "function": {"name": "f", "parameters": {"enum": [[]] * 60}}}
    error = await refused(client, json.dumps(ask(tools=[tool])))
    assert (error["param"], error["code"]) == ("tools", "invalid_value")
    calls = [
        {"id": str(index), "type": "function", "function": {"name": "f", "arguments": json.dumps({"a": [{}] * 30})}}
        for index in range(2)
    ]
    results = [{"role": "tool", "tool_call_id": str(index), "content": ""} for index in range(2)]
    messages = [*ask()["messages"], {"role": "assistant", "tool_calls": calls}, *results]
    error = await refused(client, json.dumps(ask() | {"messages": messages}))
    assert error["param"] == "messages[1].tool_calls[1].function.arguments"


async def test_a_client_that_keeps_a_stream_open_and_reads_nothing_is_let_go(client, engine, monkeypatch, eventually):
    monkeypatch.setattr(sse, "WRITE_SECONDS", 0.05)
    monkeypatch.setattr(encode, "completion_id", lambda: "x" * 8_000_000)  # more than all buffers on the way hold
    body = json.dumps({"model": "demo", "messages": [{"role": "user", "content": "hold"}], "stream": True}).encode()
    _, writer = await asyncio.open_connection("127.0.0.1", client.port, limit=2**10)
    writer.write(f"POST {URL} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
    await eventually(lambda: engine.running)
    await eventually(lambda: not engine.running)
    writer.close()


async def test_text_is_tokenized_until_the_server_stops(client, engine, monkeypatch):
    begun, goes_on = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def tokenize(text: str, bos: bool) -> tuple[int, ...]:
        loop.call_soon_threadsafe(begun.set)
        goes_on.wait(10)
        return (1,)

    monkeypatch.setattr(engine.text, "tokenize", tokenize, raising=False)
    asked = asyncio.create_task(client.post("/tokenize", json={"prompt": "a"}))
    await begun.wait()
    stopping = asyncio.create_task(client.server.app.shutdown())
    response = await asked
    goes_on.set()
    await stopping
    assert response.status == 503 and (await response.json())["error"]["code"] == "unavailable"
