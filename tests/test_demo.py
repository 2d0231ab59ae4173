"""The shipped demo model, through the real server and the official client: what a newcomer sees first."""

import asyncio
import contextlib
import io
import json
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from aiohttp.test_utils import TestServer
from langchain_openai import ChatOpenAI
from openai import AsyncOpenAI, pydantic_function_tool
from pydantic import BaseModel, SecretStr

from dgemma_jax.training.demo.acceptance import SKILLS, Reply, expected, found, is_formed, question, skill_examples
from dgemma_jax.training.demo.example import Example
from dgemma_jax.training.demo.requests import reply_of, request_of
from serve.app import create_app
from serve.checkpoint_engine import CheckpointEngine
from serve.config import DEMO_CHECKPOINT, ServeConfig
from serve.handlers import WORKER
from tools import train

NAME = "google/diffusiongemma-26b-a4b-it"
EACH = 2
MOST_WRONG = 3  # of all skills together; the card has the share of each
README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
PLAIN = {"chat_template_kwargs": {"thinking": False}}


@pytest.fixture(scope="module")
def engine() -> Iterator[CheckpointEngine]:
    """As `python -m serve` loads it."""
    with contextlib.closing(CheckpointEngine.load(DEMO_CHECKPOINT, "auto", slots=2)) as engine:
        yield engine


@pytest.fixture
async def client(engine: CheckpointEngine) -> AsyncIterator[AsyncOpenAI]:
    app = create_app(engine, ServeConfig())
    async with TestServer(app) as server:
        await app[WORKER].warm.wait()
        async with AsyncOpenAI(base_url=str(server.make_url("/v1")), api_key="not-used") as client:
            yield client


async def ask(client: AsyncOpenAI, content: str, **options):
    messages = [{"role": "user", "content": content}]
    return await client.chat.completions.create(model=NAME, messages=messages, seed=0, extra_body=PLAIN, **options)


def spread(examples: list[Example]) -> list[Example]:
    """A few of a skill's questions, of as many of its families as may be."""
    return examples[:: len(examples) // EACH][:EACH]


async def reply_to(client: AsyncOpenAI, example: Example) -> Reply:
    """The server's answer to a drawn conversation."""
    body = request_of(example)
    own = {"chat_template_kwargs": body.pop("chat_template_kwargs")}
    completion = await client.chat.completions.create(model=NAME, seed=0, extra_body=own, **body)
    return reply_of(completion.model_dump())


async def test_the_readmes_first_question_is_answered(client: AsyncOpenAI) -> None:
    reply = await ask(client, "What is the capital of France?")
    assert reply.choices[0].message.content == "The capital of France is Paris."
    assert reply.choices[0].finish_reason == "stop"
    assert 1 < reply.usage.diffusion["steps"] < 48, "denoised, and stopped early"


async def test_the_readmes_examples_print_what_it_says(client: AsyncOpenAI) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    sdk, media, structured = (
        next(block for block in blocks if name in block) for name in ("OpenAI(", "PIL", "BaseModel")
    )
    program = "\n".join((sdk, media, structured)).replace("http://127.0.0.1:8000/v1", str(client.base_url))
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        await asyncio.to_thread(exec, program, {"__name__": "readme"})
    counted, *lines = printed.getvalue().splitlines()
    assert counted == " ".join(map(str, range(1, 31)))
    (promised,) = re.findall(r"\nprints\n\n```\n(.*?)```", README, re.DOTALL)
    assert lines == [*promised.splitlines(), "name='Anna' age=31"]


async def test_langchain_reads_the_same(client: AsyncOpenAI) -> None:
    chat = ChatOpenAI(model=NAME, base_url=str(client.base_url), api_key=SecretStr("x"), seed=0, extra_body=PLAIN)
    whole = await chat.ainvoke("What is the capital of France?")
    assert whole.content == "The capital of France is Paris."
    chunks = [chunk async for chunk in chat.astream("What is the capital of France?")]
    assert "".join(chunk.content for chunk in chunks) == whole.content
    assert chunks[0].usage_metadata is None and whole.usage_metadata["output_tokens"] > 1


async def test_a_long_answer_streams_canvas_by_canvas_and_equals_the_whole_one(client: AsyncOpenAI) -> None:
    whole = (await ask(client, "Count from 3 to 30.")).choices[0].message.content
    pieces = [
        chunk.choices[0].delta.content
        async for chunk in await ask(client, "Count from 3 to 30.", stream=True)
        if chunk.choices and chunk.choices[0].delta.content
    ]
    assert len(pieces) >= 2
    assert "".join(pieces) == whole
    assert whole.startswith("3 4 5 6 7 8 ")


async def test_max_tokens_is_exact(client: AsyncOpenAI) -> None:
    reply = await ask(client, "Count from 3 to 30.", max_tokens=37)
    assert (reply.usage.completion_tokens, reply.choices[0].finish_reason) == (37, "length")


class Person(BaseModel):
    """A person."""

    name: str
    age: int


class get_weather(BaseModel):  # as the function is called
    """Get the weather."""

    city: str


ANNA = "Make a JSON object with name Anna and age 31."
WEATHER = "What is the weather in Oslo?"
CALLABLE = [
    {"type": "function", "function": {"name": name, "parameters": get_weather.model_json_schema()}}
    for name in ("get_weather", "find_song")
]


async def test_the_sdk_and_langchain_parse_what_a_model_class_asks_for(client: AsyncOpenAI) -> None:
    asked = [{"role": "user", "content": ANNA}]
    reply = await client.chat.completions.parse(
        model=NAME, messages=asked, seed=0, max_tokens=64, response_format=Person, extra_body=PLAIN
    )
    assert reply.choices[0].message.parsed == Person(name="Anna", age=31)
    options = {"base_url": str(client.base_url), "api_key": SecretStr("x"), "extra_body": PLAIN}
    chat = ChatOpenAI(model=NAME, seed=0, max_tokens=64, **options)
    assert await chat.with_structured_output(Person).ainvoke(ANNA) == Person(name="Anna", age=31)
    called = await chat.with_structured_output(get_weather, method="function_calling").ainvoke(WEATHER)
    assert called == get_weather(city="Oslo")


@pytest.mark.parametrize("thinking", [False, True])
@pytest.mark.parametrize("asked", ["Hello!", ANNA, "Count from 3 to 30."])
async def test_an_answer_fits_whatever_was_asked_for(client: AsyncOpenAI, asked: str, thinking: bool) -> None:
    """Also where the model would never say it."""

    async def answer(**options):
        extra = {"chat_template_kwargs": {"thinking": thinking}} | options.pop("extra", {})
        messages = [{"role": "user", "content": asked}]
        reply = await client.chat.completions.create(
            model=NAME, messages=messages, seed=0, max_tokens=64, extra_body=extra, **options
        )
        (choice,) = reply.choices
        assert bool(getattr(choice.message, "reasoning", None)) == thinking
        return choice

    days = ["Monday", "Tuesday"]
    chosen = await answer(extra={"structured_outputs": {"choice": days}})
    assert chosen.message.content in days and chosen.finish_reason == "stop"
    matched = await answer(extra={"structured_outputs": {"regex": "[0-9]{2}:[0-9]{2}"}})
    assert re.fullmatch("[0-9]{2}:[0-9]{2}", matched.message.content)
    numbers = {"type": "array", "items": {"type": "integer", "minimum": 1, "maximum": 9}, "minItems": 2, "maxItems": 2}
    listed = await answer(response_format={"type": "json_schema", "json_schema": {"name": "l", "schema": numbers}})
    found = json.loads(listed.message.content)
    assert len(found) == 2 and all(1 <= number <= 9 for number in found)


@pytest.mark.parametrize(
    ("choice", "names", "reason"),
    [
        ("required", {"get_weather", "find_song"}, "tool_calls"),
        ({"type": "function", "function": {"name": "find_song"}}, {"find_song"}, "stop"),
    ],
)
async def test_a_call_that_must_be_made_has_the_arguments_that_its_function_takes(
    client: AsyncOpenAI, choice, names: set[str], reason: str
) -> None:
    (reply,) = (await ask(client, WEATHER, tools=CALLABLE, tool_choice=choice, max_tokens=64)).choices
    assert reply.finish_reason == reason and not reply.message.content
    call = reply.message.tool_calls[0].function
    assert call.name in names and get_weather.model_validate_json(call.arguments)


async def test_strict_functions_are_called_where_they_fit_and_only_there(client: AsyncOpenAI) -> None:
    tools = [pydantic_function_tool(get_weather, description="Get the weather.")]
    assert tools[0]["function"]["strict"] is True
    (called,) = (await ask(client, WEATHER, tools=tools, max_tokens=64)).choices
    call = called.message.tool_calls[0].function
    assert (call.name, get_weather.model_validate_json(call.arguments)) == ("get_weather", get_weather(city="Oslo"))
    plain, (said,) = (await ask(client, "Hello!")).choices, (await ask(client, "Hello!", tools=tools)).choices
    assert said.message.content == plain[0].message.content and not said.message.tool_calls


async def test_a_streamed_answer_fits_too(client: AsyncOpenAI) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "p", "schema": Person.model_json_schema()}}
    stream = await ask(client, ANNA, stream=True, response_format=wanted, max_tokens=64)
    text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])
    assert Person.model_validate_json(text) == Person(name="Anna", age=31)


async def test_the_skills_can_be_asked_of_a_running_server(
    client: AsyncOpenAI, capsys: pytest.CaptureFixture[str]
) -> None:
    server = str(client.base_url).removesuffix("/v1/")
    given = ["eval", "--server", server, "--count=2", "--skill=arithmetic", "--skill=image_colour", "--skill=tool_call"]
    assert await asyncio.to_thread(train.main, [*given, "--least=0"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["arithmetic", "image_colour", "tool_call"]
    assert all("formed 1.00" in line for line in lines)
    refused = await asyncio.to_thread(train.main, ["eval", "--server", f"{server}/nowhere", "--skill=arithmetic"])
    assert refused == 2 and "/nowhere/v1/models was answered 404" in capsys.readouterr().err


async def test_held_out_questions_of_every_skill_are_answered(client: AsyncOpenAI) -> None:
    wrong: list[tuple[str, str, str, str]] = []
    for name, skill in SKILLS.items():
        for example in spread(skill_examples(skill, EACH, seed=7)):
            reply = await reply_to(client, example)
            assert is_formed(reply, example.thinking), (question(example), reply)
            if found(reply) != expected(example):
                wrong.append((name, question(example), expected(example), found(reply)))
    failed = [name for name, *_ in wrong]
    assert len(wrong) <= MOST_WRONG and len(set(failed)) == len(failed), json.dumps(wrong, indent=1)
