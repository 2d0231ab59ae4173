"""Several choices for one request, and how their canvases are denoised."""

from __future__ import annotations

import dataclasses

import openai
import pytest
from fake_engine import STEPS, FakeEngine

URL = "/v1/chat/completions"


async def test_every_choice_has_its_own_seed_and_usage_counts_them_all(client, ask, engine: FakeEngine):
    body = await (await client.post(URL, json=ask(n=3, seed=7))).json()
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    assert {choice["message"]["content"] for choice in body["choices"]} == {"You said: hi"}
    assert [job.seed for job in engine.jobs] == [7, 8, 9]
    assert body["usage"] == {
        "prompt_tokens": 2,
        "completion_tokens": 3 * 13,
        "total_tokens": 2 + 3 * 13,
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0},
        "diffusion": {"canvases": 3 * 4, "steps": 3 * 4 * STEPS, "seed": 7},
    }


async def test_after_the_largest_seed_comes_the_smallest(client, ask, engine: FakeEngine):
    await client.post(URL, json=ask(n=2, seed=2**63 - 1))
    assert [job.seed for job in engine.jobs] == [2**63 - 1, -(2**63)]


async def test_streamed_choices_come_one_after_the_other_each_with_its_index(sdk: openai.AsyncOpenAI):
    stream = await sdk.chat.completions.create(
        model="demo", messages=[{"role": "user", "content": "hi"}], n=2, stream=True
    )
    choices = [chunk.choices[0] async for chunk in stream]
    assert [choice.index for choice in choices if choice.delta.role] == [0, 1]
    grown = [choice for choice in choices if not choice.delta.role]
    assert [choice.index for choice in grown] == sorted(choice.index for choice in grown)
    for index in range(2):
        own = [choice for choice in grown if choice.index == index]
        assert "".join(choice.delta.content or "" for choice in own) == "You said: hi"
        assert [choice.finish_reason for choice in own] == [None] * (len(own) - 1) + ["stop"]


async def test_a_choice_that_a_stop_string_ends_does_not_hold_up_the_next(client, ask, engine: FakeEngine, eventually):
    engine.answer = lambda said: "stop" + "x" * 300
    waiting = client.post(URL, json=ask("hold", n=2, stop="stop"))
    engine.release.set()
    body = await (await waiting).json()
    assert [choice["message"]["content"] for choice in body["choices"]] == ["", ""]
    await eventually(lambda: engine.ended == ["abandoned"] * 2)


async def test_choices_that_no_line_could_hold_are_refused(start, ask):
    async with start(max_queue=1) as client:
        assert (await client.post(URL, json=ask(n=2))).status == 200
        response = await client.post(URL, json=ask(n=3))
        assert (response.status, (await response.json())["error"]["param"]) == (400, "n")


@pytest.mark.parametrize(
    "given",
    [{}, {"max_steps": 5, "t_max": 1.5}, {"entropy_bound": 0.2, "confidence_threshold": 0.1, "t_min": 0}],
)
async def test_diffusion_settings_replace_the_checkpoints_own(client, ask, engine: FakeEngine, given):
    assert (await client.post(URL, json=ask(diffusion=given | {"max_steps": given.get("max_steps")}))).status == 200
    wanted = dataclasses.replace(engine.sampling, **given) if given else None
    assert engine.jobs[0].sampling == wanted
