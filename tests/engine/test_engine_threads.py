"""The engine with its own thread, over a device that is computed by hand."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest
from engine.hand_device import BAD, HandDevice, answer

from dgemma_jax.engine import Draft, Engine, EngineDeadError, Event, Failed, Prefilled, Request
from dgemma_jax.engine.batch import Canvas
from dgemma_jax.generate import CanvasCommitted, Finished


def request(first: int, **fields: int) -> Request:
    return Request(tokens=(first, 2, 3), **fields)  # type: ignore[arg-type]


async def read(engine: Engine, one: Request) -> list[Event]:
    return [event async for event in engine.stream(one)]


async def test_streams_run_together_and_each_gets_its_own_events() -> None:
    engine = Engine.over(HandDevice(slots=3), steps=2)
    requests = [request(first, max_new_tokens=30, seed=first) for first in range(2, 12)]
    for one, events in zip(requests, await asyncio.gather(*(read(engine, one) for one in requests)), strict=True):
        assert isinstance(events[0], Prefilled)
        assert events[1:] == answer(one)
    engine.close()


async def test_leaving_a_stream_frees_its_row() -> None:
    device = HandDevice(slots=1)
    engine = Engine.over(device)
    endless = engine.stream(request(5, max_new_tokens=4000, draft_every=1))
    async for event in endless:
        if isinstance(event, Draft):
            break
    await endless.aclose()  # type: ignore[attr-defined]
    assert [type(event) for event in await read(engine, request(6, max_new_tokens=4))][-1] is Finished
    assert not device.rows
    engine.close()


class SlowDevice(HandDevice):
    """Takes its time over every step, so that long requests are still open when the test goes on."""

    def denoise(self, most: int) -> list[Canvas]:
        time.sleep(0.005)
        return super().denoise(most)


async def test_a_crash_reaches_every_open_stream_and_the_next_request() -> None:
    device = SlowDevice(slots=2)
    engine = Engine.over(device)
    streams = [asyncio.create_task(read(engine, request(n, max_new_tokens=4000))) for n in range(2, 6)]
    while engine.waiting + engine.running < 4:
        await asyncio.sleep(0.001)
    device.crash = True
    for events in await asyncio.gather(*streams):
        assert isinstance(events[-1], Failed) and isinstance(events[-1].error, EngineDeadError)
    with pytest.raises(EngineDeadError, match="out of order"):
        await read(engine, request(5))
    assert str(engine.error) == "out of order"
    engine.close()


async def test_closing_fails_what_is_open_and_refuses_what_comes() -> None:
    engine = Engine.over(SlowDevice())
    stream = engine.stream(request(5, max_new_tokens=4000))
    events = [await anext(stream)]
    engine.close()
    events += [event async for event in stream]
    assert isinstance(events[-1], Failed) and "the engine was closed" in str(events[-1].error)
    with pytest.raises(EngineDeadError):
        await read(engine, request(5))
    engine.close()
    assert "dgemma-engine" not in {thread.name for thread in threading.enumerate()}


def test_many_prompts_are_answered_in_their_order() -> None:
    engine = Engine.over(HandDevice(slots=3), max_queue=0)
    prompts = [(n, 2, 3) for n in (5, 6, BAD, 8)]
    answers = engine.generate_many([*prompts, request(9, max_new_tokens=5)], progress=False, max_new_tokens=20)
    for prompt, made in zip(prompts, answers, strict=False):
        if prompt[0] == BAD:
            assert str(made.error) == "this prompt cannot be read" and made.reason is None
            continue
        *canvases, last = answer(Request(tokens=prompt, max_new_tokens=20))
        assert made.tokens == sum((c.tokens for c in canvases if isinstance(c, CanvasCommitted)), ())
        assert made.steps == tuple(c.steps for c in canvases if isinstance(c, CanvasCommitted))
        assert isinstance(last, Finished) and made.reason == last.reason
    assert len(answers[4].tokens) <= 5
    engine.close()


def test_steps_are_taken_by_the_caller_or_by_the_thread() -> None:
    engine = Engine.over(HandDevice())
    id = engine.submit(request(5, max_new_tokens=9))
    assert [event for of, event in engine.run() if of == id][1:] == answer(request(5, max_new_tokens=9))
    engine.generate_many([(5,)], progress=False)
    with pytest.raises(RuntimeError, match="has a thread"):
        engine.step()
    engine.close()
