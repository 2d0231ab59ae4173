"""The engine with its own thread, over a device that is computed by hand."""

from __future__ import annotations

import asyncio
import sys
import threading
import time

import pytest
from engine.hand_device import BAD, HandDevice, answer

from dgemma_jax.engine import Draft, Engine, EngineDeadError, Event, Failed, Prefilled, RefusedError, Request
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
    device.crash = RuntimeError("out of order")
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
        assert made.tokens == _tokens(Request(tokens=prompt, max_new_tokens=20))
        assert made.steps == tuple(c.steps for c in canvases if isinstance(c, CanvasCommitted))
        assert isinstance(last, Finished) and made.reason == last.reason
    assert len(answers[4].tokens) <= 5
    engine.close()


def test_of_many_prompts_one_that_is_refused_costs_no_other_its_answer() -> None:
    engine = Engine.over(HandDevice(slots=2), max_queue=0)
    prompts = [(5,) * 5000, (5, 2, 3), (99,), *[(6, 2, 3)] * 4, (5,) * 5000]
    long, good, unknown, *same, last = engine.generate_many(prompts, progress=False, max_new_tokens=20)
    engine.close()
    assert isinstance(long.error, RefusedError) and isinstance(last.error, RefusedError)
    assert "tokens must be in [0, 50)" in str(unknown.error)
    for prompt, made in (((5, 2, 3), good), *(((6, 2, 3), one) for one in same)):
        assert made.error is None and made.tokens == _tokens(Request(tokens=prompt, max_new_tokens=20))


def _tokens(one: Request) -> tuple[int, ...]:
    return sum((event.tokens for event in answer(one) if isinstance(event, CanvasCommitted)), ())


class Panic(BaseException):
    """As what a library written in Rust raises when it panics."""


async def test_a_panic_in_a_step_is_a_crash_that_every_stream_is_told_of() -> None:
    device = HandDevice()
    engine = Engine.over(device)
    device.crash = Panic("index out of bounds")
    events = await asyncio.wait_for(read(engine, request(5)), 5)
    assert isinstance(events[-1], Failed) and isinstance(events[-1].error.__cause__, Panic)
    with pytest.raises(EngineDeadError, match="index out of bounds"):
        await read(engine, request(5))
    engine.close()


async def test_what_ends_the_thread_fails_what_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine.over(HandDevice())
    monkeypatch.setattr(engine._core, "_step", lambda: sys.exit("enough"))  # not an error that a step makes a crash of
    events = await asyncio.wait_for(read(engine, request(5)), 5)
    assert isinstance(events[-1], Failed) and isinstance(engine.error, SystemExit)
    engine.close()


async def test_a_listener_that_panics_is_no_other_requests_trouble() -> None:
    def panic(event: Event) -> None:
        raise Panic

    engine = Engine.over(HandDevice())
    engine.listen(request(5), panic)
    assert (await asyncio.wait_for(read(engine, request(6)), 5))[1:] == answer(request(6))
    engine.close()


def test_an_engine_that_is_closed_within_a_step_ends_without_a_crash(caplog: pytest.LogCaptureFixture) -> None:
    """As at the end of a server whose last step takes long: `close` comes from another thread."""

    class Closing(HandDevice):
        def denoise(self, most: int) -> list[Canvas]:
            closing = threading.Thread(target=engine.close)
            closing.start()
            closing.join()
            return super().denoise(most)

    engine = Engine.over(Closing())
    ids = [engine.submit(request(first, max_new_tokens=400)) for first in (5, 6)]
    events = list(engine.run())
    assert {id: str(event.error) for id, event in events if isinstance(event, Failed)} == dict.fromkeys(
        ids, "the engine has stopped: the engine was closed"
    )
    assert engine.running == engine.waiting == 0 and not caplog.records


def test_steps_are_taken_by_the_caller_or_by_the_thread() -> None:
    engine = Engine.over(HandDevice())
    id = engine.submit(request(5, max_new_tokens=9))
    assert [event for of, event in engine.run() if of == id][1:] == answer(request(5, max_new_tokens=9))
    engine.generate_many([(5,)], progress=False)
    with pytest.raises(RuntimeError, match="has a thread"):
        engine.step()
    engine.close()
