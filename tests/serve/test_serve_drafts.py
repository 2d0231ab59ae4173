"""Canvases shown while they are denoised: for those who ask, beside the reply and never in it."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from aiohttp.test_utils import TestClient
from fake_engine import CLOSE_THOUGHT, END, OPEN_THOUGHT, FakeEngine, FakeParser, call

from serve.engine import Call, Canvas, Draft, Piece
from serve.reply import Reply

URL = "/v1/chat/completions"
DRAFTS = {"stream": True, "diffusion": {"stream_drafts": True}}


def draft(text: str, step: int = 1) -> Draft:
    return Draft(tuple(map(ord, text)), step)


def canvas(text: str) -> Canvas:
    return Canvas(tuple(map(ord, text)), 1)


async def chunks_of(client: TestClient, body: dict[str, Any], engine: FakeEngine) -> list[dict[str, Any]]:
    """All chunks; a held reply goes on at the draft behind which it is held."""
    response = await client.post(URL, json=body)
    assert response.status == 200, await response.text()
    chunks = []
    async for line in response.content:
        if line.startswith(b"data: {"):
            chunks.append(json.loads(line.removeprefix(b"data: ")))
            shown = chunks[-1].get("diffusion", {})
            if shown.get("step") == 2 and shown["canvas"] > 0:  # the first canvas is never held
                engine.release.set()
    return chunks


async def test_a_draft_is_an_empty_chunk_with_the_canvas_beside_it(client, ask, engine: FakeEngine):
    chunks = await chunks_of(client, ask("hold", **DRAFTS), engine)
    # The second canvas of "You said: hold" is held after two of its three steps.
    (shown,) = [
        chunk for chunk in chunks if chunk.get("diffusion", {}).get("canvas") == 1 and chunk["diffusion"]["step"] == 2
    ]
    assert shown["diffusion"] == {
        "type": "draft", "canvas": 1, "step": 2, "max_steps": 48, "reasoning": None, "text": "sa??",
    }  # fmt: skip
    assert shown["choices"] == [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": None}]
    assert shown["object"] == "chat.completion.chunk" and shown["id"] == chunks[0]["id"]


async def test_drafts_change_nothing_of_the_reply(client, ask, engine: FakeEngine):
    chunks = await chunks_of(client, ask("hold", **DRAFTS, stream_options={"include_usage": True}), engine)
    said = "".join(choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"])
    assert said == "You said: hold"
    assert chunks[-1]["usage"]["completion_tokens"] == len("You said: hold") + 1
    assert all("usage" in chunk for chunk in chunks)


async def test_the_official_client_reads_over_drafts(sdk: openai.AsyncOpenAI):
    stream = await sdk.chat.completions.create(
        model="demo",
        messages=[{"role": "user", "content": "hi"}],
        stream=True,
        extra_body={"diffusion": {"stream_drafts": True}},
    )
    assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == "You said: hi"


@pytest.mark.parametrize("diffusion", [None, {"max_steps": 3}, {"stream_drafts": False, "every": 1}])
async def test_who_does_not_ask_sees_none(client, ask, engine: FakeEngine, diffusion):
    engine.release.set()
    chunks = await chunks_of(client, ask("hold", stream=True, diffusion=diffusion), engine)
    assert not [chunk for chunk in chunks if "diffusion" in chunk]
    assert engine.jobs[-1].draft_every == 0


async def test_every_says_after_how_many_steps(client, ask, engine: FakeEngine):
    wanted = ask("hold", stream=True, diffusion={"stream_drafts": True, "every": 2})
    chunks = await chunks_of(client, wanted, engine)
    assert engine.jobs[-1].draft_every == 2
    assert {chunk["diffusion"]["step"] for chunk in chunks if "diffusion" in chunk} == {2}


@pytest.mark.parametrize(
    ("url", "body", "param"),
    [
        (URL, {"diffusion": {"stream_drafts": True}}, "diffusion.stream_drafts"),
        (URL, {"stream": True, "diffusion": {"stream_drafts": True, "every": 0}}, "diffusion.every"),
        ("/v1/completions", {"stream": True, "diffusion": {"stream_drafts": True}}, "diffusion.stream_drafts"),
    ],
)
async def test_where_there_are_no_drafts_they_are_refused_by_name(client, ask, url, body, param):
    asked = ask() if url == URL else {"model": "demo", "prompt": "hi"}
    response = await client.post(url, json=asked | body)
    assert response.status == 400
    assert (await response.json())["error"]["param"] == param


def test_a_preview_leaves_the_reply_as_it_is():
    reply, plain = (Reply(FakeParser(), ["stop"], include_reasoning=True) for _ in range(2))
    pieces = []
    for text in ("ab st", "op cd"):
        wrong = reply.preview(draft("xxstopyy" + END), room=99)
        assert wrong.canvas == reply.canvases
        pieces.append(reply.push(canvas(text)))
    assert pieces == [plain.push(canvas(text)) for text in ("ab st", "op cd")]
    assert (reply.finish_reason, reply.completion_tokens) == (plain.finish_reason, plain.completion_tokens)


def test_the_preview_of_the_canvas_that_comes_is_what_it_adds():
    reply = Reply(FakeParser(), [], include_reasoning=True)
    text = f"{OPEN_THOUGHT}why{CLOSE_THOUGHT}because{END}"
    shown = reply.preview(draft(text, step=7), room=99)
    assert (shown.step, shown.pieces) == (7, reply.push(canvas(text)))


def test_a_preview_shows_no_reasoning_to_those_who_want_none():
    reply = Reply(FakeParser(), [], include_reasoning=False)
    reply.push(canvas(f"{OPEN_THOUGHT}se"))
    assert reply.preview(draft(f"cret{CLOSE_THOUGHT}yes"), room=99).pieces == [Piece("content", "yes")]


def test_a_preview_has_calls_and_ends_where_the_reply_may():
    reply = Reply(FakeParser(), [], include_reasoning=True, most_calls=None)
    assert reply.preview(draft(call("f")), room=99).pieces == [Call("f", "{}")]
    assert reply.preview(draft("abcdef"), room=3).pieces == [Piece("content", "abc")]
