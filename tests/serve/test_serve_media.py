"""Images and videos in messages: fetched, read by the engine, put in their places; every failure names its part."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import threading
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from fake_engine import PATIENCE, FakeEngine

from serve.handlers import MEDIA, MEDIA_MEMORY, WORKER

URL = "/v1/chat/completions"


def data_url(content: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def image(content: bytes = b"abc", **fields: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data_url(content), **fields}}


def video(content: bytes = b"films") -> dict[str, Any]:
    return {"type": "video_url", "video_url": {"url": data_url(content, "video/mp4")}}


def text(said: str) -> dict[str, Any]:
    return {"type": "text", "text": said}


def user(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


def body(*messages: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"model": "demo", "messages": list(messages), **fields}


async def said(client, asked: dict[str, Any]) -> str:
    response = await client.post(URL, json=asked)
    assert response.status == 200, await response.text()
    return (await response.json())["choices"][0]["message"]["content"]


async def error(client, asked: dict[str, Any]) -> dict[str, Any]:
    response = await client.post(URL, json=asked)
    assert response.status == 400, await response.text()
    return (await response.json())["error"]


@contextlib.asynccontextmanager
async def files(**content: bytes) -> AsyncIterator[str]:
    """A web server with these files; the context gives its address."""
    app = web.Application()

    async def file(request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if name not in content:
            raise web.HTTPNotFound
        return web.Response(body=content[name], content_type="image/jpeg")

    app.router.add_get("/{name}", file)
    async with TestServer(app) as server:
        yield str(server.make_url("")).rstrip("/")


async def test_media_stand_where_the_client_put_them(client):
    asked = body(user(text("a"), image(b"1"), text("b"), video(b"22"), image(b"333"), text("c")))
    assert await said(client, asked) == "You said: a<image auto 1>b<video auto 2><image auto 3>c"


async def test_media_of_earlier_turns_are_read_too(client, engine: FakeEngine):
    earlier = [user(image(b"1"), text("What is it?")), {"role": "assistant", "content": "A cat."}]
    await said(client, body(*earlier, user(text("And this?"), image(b"22"))))
    assert [message["content"] for message in engine.rendered[0]] == [
        [{"type": "image"}, text("What is it?")],
        "A cat.",
        [text("And this?"), {"type": "image"}],
    ]


@pytest.mark.parametrize("detail", ["low", "high", "auto"])
async def test_detail_reaches_the_engine(client, detail):
    assert await said(client, body(user(image(b"1", detail=detail)))) == f"You said: <image {detail} 1>"


async def test_a_prompt_is_as_long_as_its_media_make_it(client, engine: FakeEngine):
    await said(client, body(user(image(b"1"))))
    assert len(engine.jobs[0].prompt) == len("<image auto 1>")
    response = await client.post(URL, json=body(user(text("x" * 385), image(b"1"))))
    assert (await response.json())["error"]["code"] == "context_length_exceeded"


async def test_media_are_fetched_where_the_server_may(start):
    async with files(cat=b"1234") as site:
        async with start(allow_private_media=True) as client:
            asked = body(user({"type": "image_url", "image_url": {"url": f"{site}/cat"}}))
            assert await said(client, asked) == "You said: <image auto 4>"
        async with start() as client:
            refused = await error(client, asked)
            assert (refused["param"], refused["code"]) == ("messages[0].content[0].image_url", "invalid_image_url")


async def test_only_the_allowed_domains_are_asked(start):
    async with files(cat=b"1234") as site, start(allow_private_media=True, allowed_media_domains=("x.org",)) as client:
        refused = await error(client, body(user({"type": "image_url", "image_url": {"url": f"{site}/cat"}})))
        assert "may fetch from" in refused["message"]


@pytest.mark.parametrize(
    ("part", "param"),
    [
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64,%%%"}}, "messages[1].content[1].image_url"),
        ({"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}, "messages[1].content[1].image_url"),
        ({"type": "video_url", "video_url": {"url": "http://127.0.0.1/x"}}, "messages[1].content[1].video_url"),
        (image(b"broken"), "messages[1].content[1].image_url"),
        (video(b"broken"), "messages[1].content[1].video_url"),
        (image(b"1", detail="wonderful"), "messages[1].content[1].image_url.detail"),
        ({"type": "image_url", "image_url": {}}, "messages[1].content[1].image_url.url"),
        ({"type": "image_url", "image_url": "http://x.org"}, "messages[1].content[1].image_url"),
        ({"type": "video_url"}, "messages[1].content[1].video_url"),
    ],
)
async def test_a_medium_that_cannot_be_had_is_a_400_that_names_its_part(client, engine: FakeEngine, part, param):
    for stream in (False, True):
        asked = body(user(image(b"fine")), user(text("see"), part), stream=stream)
        assert (await error(client, asked))["param"] == param
    assert not engine.jobs


@pytest.mark.parametrize("role", ["system", "developer", "assistant", "tool"])
async def test_only_users_show_media(client, role):
    asked = body({"role": role, "content": [image()], **({"tool_call_id": "a"} if role == "tool" else {})})
    assert (await error(client, asked))["param"] == "messages[0].content[0].type"


async def test_too_many_media_are_refused_before_any_is_fetched(start, engine: FakeEngine):
    engine.read = lambda *_: pytest.fail("read for nothing")
    async with start(max_media=2) as client:
        refused = await error(client, body(user(image(), video()), user(image())))
        assert (refused["param"], refused["code"]) == ("messages[1].content[0].image_url", "too_many_media")
        assert "at most 2" in refused["message"]


async def test_a_wrong_request_fetches_nothing(client, engine: FakeEngine):
    engine.read = lambda *_: pytest.fail("read for nothing")
    response = await client.post(URL, json=body(user(image())) | {"model": "other"})
    assert response.status == 404


async def test_decoding_holds_nobody_up_and_ends_with_its_client(client, ask, engine: FakeEngine, eventually):
    entered, go_on, read = [], threading.Event(), engine.read

    def slow(*file):
        entered.append(file)
        assert go_on.wait(PATIENCE)
        return read(*file)

    engine.read = slow
    gone = asyncio.create_task(client.post(URL, json=body(user(*[image()] * 5))))
    await eventually(lambda: len(entered) == 2)
    assert await said(client, ask("hi")) == "You said: hi"
    gone.cancel()
    await eventually(lambda: not client.app[WORKER]._open)
    go_on.set()
    engine.read = read
    assert await said(client, body(user(image(b"1")))) == "You said: <image auto 1>"
    assert len(entered) == 2, "what nobody waits for any more is not decoded"
    assert client.app[MEDIA]._held._value == 8


async def test_media_wait_until_those_of_others_leave_room(start, engine: FakeEngine, eventually):
    """An image takes 10 bytes of the fake engine's, a video 40. Text waits for none of it."""
    read, go_on, decode = [], threading.Event(), engine.read

    def slow(*file):
        read.append(file[1])
        assert go_on.wait(PATIENCE)
        return decode(*file)

    engine.read = slow
    async with start(media_memory=45) as client:
        first = asyncio.create_task(said(client, body(user(video(b"1")))))
        await eventually(lambda: read == ["video"])
        second = asyncio.create_task(said(client, body(user(image(b"22")))))
        assert await said(client, body(user(text("hi")))) == "You said: hi"
        assert read == ["video"], "a second thread is free, but no memory is"
        go_on.set()
        assert await first == "You said: <video auto 1>"
        assert await second == "You said: <image auto 2>"
        assert await said(client, body(user(video(b"1"), video(b"22")))) == "You said: <video auto 1><video auto 2>"
        assert client.app[MEDIA_MEMORY]._free == 45


async def test_slow_servers_hold_up_only_the_request_that_names_them(start, eventually):
    async with contextlib.AsyncExitStack() as stack:
        client = await stack.enter_async_context(start(allow_private_media=True))
        asked, go_on = [], asyncio.Event()

        async def slow(request: web.Request) -> web.Response:
            asked.append(request)
            await go_on.wait()
            return web.Response(body=b"late", content_type="image/png")

        app = web.Application()
        app.router.add_get("/slow", slow)
        server = await stack.enter_async_context(TestServer(app))
        here = await stack.enter_async_context(files(quick=b"12"))
        late = {"type": "image_url", "image_url": {"url": str(server.make_url("/slow"))}}
        quick = {"type": "image_url", "image_url": {"url": f"{here}/quick"}}
        waiting = [asyncio.create_task(said(client, body(user(*[late] * 8)))) for _ in range(2)]
        await eventually(lambda: len(asked) == 8)
        assert await said(client, body(user(quick, image(b"1")))) == "You said: <image auto 2><image auto 1>"
        go_on.set()
        assert await asyncio.gather(*waiting) == ["You said: " + "<image auto 4>" * 8] * 2


async def test_the_official_client_sends_pictures(sdk: openai.AsyncOpenAI):
    stream = await sdk.chat.completions.create(
        model="demo", messages=[user(text("What is in this image?"), image(b"1"))], max_tokens=1024, stream=True
    )
    deltas = [chunk.choices[0].delta.content or "" async for chunk in stream]
    assert "".join(deltas) == "You said: What is in this image?<image auto 1>"
