"""The shipped demo model, through the real server and the official client: what a newcomer sees first."""

from collections.abc import AsyncIterator

import pytest
from aiohttp.test_utils import TestServer
from openai import AsyncOpenAI

from dgemma_jax.training.demo import mix
from dgemma_jax.training.demo.acceptance import PROMISED
from serve.app import create_app
from serve.checkpoint_engine import CheckpointEngine
from serve.config import DEMO_CHECKPOINT, ServeConfig
from serve.handlers import WORKER

NAME = "google/diffusiongemma-26b-a4b-it"
EACH = 5
ACCEPTED = 0.75  # of all together; 0.88 is measured over 200 questions a family


@pytest.fixture(scope="module")
def engine() -> CheckpointEngine:
    return CheckpointEngine.load(DEMO_CHECKPOINT, "bfloat16")


@pytest.fixture
async def client(engine: CheckpointEngine) -> AsyncIterator[AsyncOpenAI]:
    app = create_app(engine, ServeConfig())
    async with TestServer(app) as server:
        await app[WORKER].warm.wait()
        async with AsyncOpenAI(base_url=str(server.make_url("/v1")), api_key="not-used") as client:
            yield client


async def ask(client: AsyncOpenAI, messages: list, seed: int = 0, **options):
    return await client.chat.completions.create(model=NAME, messages=messages, seed=seed, **options)


async def test_the_readmes_first_question_is_answered(client: AsyncOpenAI) -> None:
    reply = await ask(client, [{"role": "user", "content": "What is the capital of France?"}])
    assert reply.choices[0].message.content == "The capital of France is Paris."
    assert reply.choices[0].finish_reason == "stop"
    assert 1 < reply.usage.diffusion["steps"] < 48, "denoised, and stopped early"


async def test_a_long_answer_streams_canvas_by_canvas_and_equals_the_whole_one(client: AsyncOpenAI) -> None:
    messages = [{"role": "user", "content": "Count from 3 to 20."}]
    whole = (await ask(client, messages)).choices[0].message.content
    pieces = [
        chunk.choices[0].delta.content
        async for chunk in await ask(client, messages, stream=True)
        if chunk.choices and chunk.choices[0].delta.content
    ]
    assert len(pieces) >= 2
    assert "".join(pieces) == whole
    assert whole.startswith("3, 4, 5, ")


async def test_max_tokens_is_exact(client: AsyncOpenAI) -> None:
    messages = [{"role": "user", "content": "Count from 3 to 20."}]
    reply = await ask(client, messages, max_tokens=37)
    assert (reply.usage.completion_tokens, reply.choices[0].finish_reason) == (37, "length")


async def test_held_out_questions_of_every_promised_family_are_answered(client: AsyncOpenAI) -> None:
    examples = [example for family in PROMISED for example in mix.test_examples(family, EACH, seed=7)]
    replies = [(await ask(client, example.prompt)).choices[0].message.content for example in examples]
    wrong = [
        (e.prompt[-1]["content"], e.expected, reply)
        for e, reply in zip(examples, replies, strict=True)
        if reply != e.expected
    ]
    assert len(wrong) <= (1 - ACCEPTED) * len(examples), wrong
