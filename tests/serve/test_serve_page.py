"""Every example of NVIDIA's page about this model, as printed, against `--served-model-name` with the page's name.

`page/` holds the examples verbatim, named after what they show. Changed are only the addresses: the server's, and those
of the media, which come from a web server of the test. Asserted is what the page shows of the answers.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import re
import shlex
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from fake_engine import FakeEngine
from test_serve_pictures import film, picture

from serve.app import create_app
from serve.config import PUBLISHED_NAME, parse_flags

PAGE = Path(__file__).parent / "page"
SERVER = "http://0.0.0.0:8000"
IMAGE, VIDEO = picture(form="JPEG"), film()
FILES = {".jpg": (IMAGE, "image/jpeg"), ".mp4": (VIDEO, "video/mp4")}
SEEN = {"image": f"<image auto {len(IMAGE)}>", "video": f"<video auto {len(VIDEO)}>"}
ON_IMAGE = f"You said: What is in this image?{SEEN['image']}"
ON_TRIP = "You said: Create a detailed itinerary for a week-long adventure trip through Southeast Asia."
CURL = argparse.ArgumentParser("curl")
CURL.add_argument("-X", dest="method")
CURL.add_argument("-H", dest="header", action="append")
CURL.add_argument("-d", dest="data")
CURL.add_argument("url")


def names(ending: str) -> list[str]:
    return sorted(path.name for path in PAGE.glob(f"*.{ending}"))


@pytest.fixture
async def media() -> AsyncIterator[str]:
    """A web server that has the page's media at the page's paths; the fixture is its address."""

    async def file(request: web.Request) -> web.Response:
        body, content_type = FILES[Path(request.path).suffix]
        return web.Response(body=body, content_type=content_type)

    app = web.Application()
    app.router.add_get("/{path:.*}", file)
    async with TestServer(app) as server:
        yield str(server.make_url("")).rstrip("/")


@pytest.fixture
async def client(engine: FakeEngine) -> AsyncIterator[TestClient]:
    config = parse_flags(["--served-model-name", PUBLISHED_NAME, "--allow-private-media", "--seed", "1"])
    async with TestClient(TestServer(create_app(engine, config))) as client:
        yield client


@pytest.fixture
def example(client: TestClient, media: str) -> Any:
    """Reads an example, with the addresses of this test."""
    server = str(client.make_url("")).rstrip("/")

    def read(name: str) -> str:
        return re.sub(r"https://[\w.-]+", media, (PAGE / name).read_text(encoding="utf-8")).replace(SERVER, server)

    return read


async def curl(client: TestClient, command: str, **more: Any) -> tuple[dict[str, Any], str]:
    """Does what a curl command says; returns the body that was sent and the text of the answer."""
    program, *words = shlex.split(command.replace("\\\n", " "))
    assert program == "curl"
    asked = CURL.parse_args(words)
    body = json.loads(asked.data) | more
    headers = dict(header.split(": ", 1) for header in asked.header)
    async with client.session.request(asked.method, asked.url, headers=headers, data=json.dumps(body)) as response:
        assert response.status == 200, await response.text()
        return body, await response.text()


def reply(text: str) -> tuple[str, str | None, str]:
    """Content, reasoning and the reason to finish of an answer, whole or streamed."""
    if not text.startswith("data: "):
        (choice,) = json.loads(text)["choices"]
        return choice["message"]["content"], choice["message"]["reasoning"], choice["finish_reason"]
    *frames, done, rest = text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    choices = [json.loads(frame.removeprefix("data: "))["choices"][0] for frame in frames]
    content, reasoning = (
        "".join(choice["delta"].get(name) or "" for choice in choices) for name in ("content", "reasoning")
    )
    return content, reasoning or None, choices[-1]["finish_reason"]


def run(code: str, **given: Any) -> tuple[str, dict[str, Any]]:
    """Runs a program of the page; returns what it prints, and its variables."""
    printed: list[str] = []

    def record(*values: Any, end: str = "\n", flush: bool = False) -> None:
        printed.append(" ".join(map(str, values)) + end)

    # One snippet is printed with a space before some of its lines, which is no Python.
    code = "".join(line[(len(line) - len(line.lstrip(" "))) % 4 % 2 :] for line in code.splitlines(keepends=True))
    variables: dict[str, Any] = {"print": record, **given}
    exec(compile(code, "<page>", "exec"), variables)
    return "".join(printed), variables


ANSWERS = {
    "image.curl": (ON_IMAGE, "Hmm."),
    "reasoning_off.curl": (ON_IMAGE, None),
    "text.curl": (ON_TRIP, "Hmm."),
    "turns.curl": ("You said: When was this system released?", "Hmm."),
}
PRINTS = {
    "image.python": rf"ChatCompletionMessage\(content='{re.escape(ON_IMAGE)}'.* role='assistant'.* reasoning='Hmm\.'.*",
    "image_streamed.python": re.escape(ON_IMAGE),
    "image_reasoning.python": rf"reasoning: Hmm\.\ncontent: {re.escape(ON_IMAGE)}",
    "video_reasoning.python": rf"reasoning: Hmm\.\ncontent: You said: What is happening in this video\?{SEEN['video']}",
    "text.python": re.escape(ON_TRIP),
    "turns.python": r"ChatCompletionMessage\(content='You said: When was this system released\?', .*\)",
    "langchain.python": rf"content='{re.escape(ON_IMAGE)}' .*'finish_reason': 'stop'.*",
}


@pytest.mark.parametrize("name", names("curl"))
async def test_a_command_is_answered(client, example, name):
    body, text = await curl(client, example(name))
    assert reply(text) == (*ANSWERS[name], "stop")
    assert text.startswith("data: ") == body.get("stream", False)
    if not body.get("stream"):
        assert json.loads(text)["model"] == PUBLISHED_NAME


@pytest.mark.parametrize("name", names("curl"))
@pytest.mark.parametrize("more", [{"stream": True}, {"include_reasoning": False}], ids=str)
async def test_what_the_page_says_may_be_added_to_a_body_may(client, example, name, more):
    _, text = await curl(client, example(name), **more)
    content, reasoning = ANSWERS[name]
    assert reply(text) == (content, reasoning if more.get("include_reasoning", True) else None, "stop")


@pytest.mark.parametrize("name", sorted(set(names("python")) - {"file_to_base64.python"}))
async def test_a_program_prints_what_it_should(example, name):
    code = example(name)
    if code.startswith("# Code preceding `client.chat.completions.create` is the same"):
        code = example("image.python").partition("chat_response =")[0] + code
    printed, _ = await asyncio.to_thread(run, code)
    assert re.fullmatch(PRINTS[name] + "\n", printed), printed


@pytest.mark.parametrize("name", names("json"))
async def test_a_medium_is_read_where_the_page_puts_it(client, example, tmp_path, name):
    part = json.loads(example(name))
    kind = part["type"].removesuffix("_url")
    if "base64" in name:  # the page leaves out the middle; its own program writes the whole
        start, ellipsis, _ = part[part["type"]]["url"].partition("SGVsbG8gZGVh...")
        assert ellipsis
        file = tmp_path / "file"
        file.write_bytes({"image": IMAGE, "video": VIDEO}[kind])
        _, made = run((PAGE / "file_to_base64.python").read_text(encoding="utf-8"), file_path=file)
        assert base64.b64decode(made["b64"]) == file.read_bytes()
        part[part["type"]]["url"] = start + made["b64"]
    body = {"model": PUBLISHED_NAME, "messages": [{"role": "user", "content": [part]}]}
    response = await client.post("/v1/chat/completions", json=body)
    assert reply(await response.text()) == (f"You said: {SEEN[kind]}", "Hmm.", "stop")


def test_every_example_is_run():
    assert set(names("curl")) == set(ANSWERS) and set(names("python")) == {*PRINTS, "file_to_base64.python"}
    assert len(list(PAGE.iterdir())) == len(ANSWERS) + len(PRINTS) + 1 + len(names("json"))
    for name in (*ANSWERS, *PRINTS):
        assert PUBLISHED_NAME in (PAGE / name).read_text(encoding="utf-8") or name == "image_streamed.python"
