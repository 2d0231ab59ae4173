"""One engine, many clients: nothing is mixed up, nobody is forgotten, and one failure stays one failure."""

from __future__ import annotations

import asyncio
import json
import threading

import openai
import pytest
from fake_engine import PATIENCE, FakeEngine

from serve.engine import Canvas, Draft
from serve.errors import TimedOutError
from serve.handlers import WORKER
from serve.worker import Run

URL = "/v1/chat/completions"


async def content_of(response) -> str:
    assert response.status == 200, await response.text()
    return (await response.json())["choices"][0]["message"]["content"]


async def test_concurrent_replies_are_never_mixed_up(client, ask):
    async def one(index: int) -> None:
        said = f"number {index}"
        if index % 2:
            assert await content_of(await client.post(URL, json=ask(said))) == f"You said: {said}"
            return
        text = await (await client.post(URL, json=ask(said, stream=True))).text()
        chunks = [json.loads(line.removeprefix("data: ")) for line in text.split("\n\n")[:-2]]
        assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == f"You said: {said}"

    await asyncio.gather(*map(one, range(40)))


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_goes_away_frees_the_engine(client, ask, engine: FakeEngine, eventually, stream):
    gone = asyncio.create_task(client.post(URL, json=ask("hold", stream=stream)))
    await eventually(lambda: len(engine.jobs) == 1)
    if stream:
        (await gone).close()
    else:
        gone.cancel()
    await asyncio.sleep(0.1)
    engine.release.set()
    await eventually(lambda: engine.ended == ["abandoned"])
    assert await content_of(await client.post(URL, json=ask("next"))) == "You said: next"


async def test_a_client_that_goes_away_leaves_the_line(client, ask, engine: FakeEngine, eventually):
    worker = client.app[WORKER]
    first = asyncio.create_task(client.post(URL, json=ask("hold")))
    await eventually(lambda: len(engine.jobs) == 1)
    second = asyncio.create_task(client.post(URL, json=ask("never run")))
    await eventually(lambda: worker.waiting == 1)
    second.cancel()
    await eventually(lambda: worker.waiting == 0)
    engine.release.set()
    await first
    assert len(engine.jobs) == 1


async def test_a_full_line_is_a_429_and_opens_again(start, ask, engine: FakeEngine, eventually):
    async with start(max_queue=1) as client:
        running = asyncio.create_task(client.post(URL, json=ask("hold")))
        await eventually(lambda: len(engine.jobs) == 1)
        waiting = asyncio.create_task(client.post(URL, json=ask("hi")))
        await eventually(lambda: client.app[WORKER].waiting == 1)
        for stream in (False, True):
            refused = await client.post(URL, json=ask("hi", stream=stream))
            assert refused.status == 429
            assert int(refused.headers["Retry-After"]) >= 1
            assert (await refused.json())["error"]["type"] == "rate_limit_error"
        engine.release.set()
        assert await content_of(await running) == "You said: hold"
        assert await content_of(await waiting) == "You said: hi"
        assert await content_of(await client.post(URL, json=ask("again"))) == "You said: again"


async def test_a_request_that_is_refused_costs_no_rendering(start, ask, engine: FakeEngine, eventually):
    async with start(max_queue=0) as client:
        running = asyncio.create_task(client.post(URL, json=ask("hold")))
        await eventually(lambda: len(engine.jobs) == 1)
        assert (await client.post(URL, json=ask("too much"))).status == 429
        client.app[WORKER].state = "failed"
        assert (await client.post(URL, json=ask("too late"))).status == 503
        assert len(engine.rendered) == 1
        client.app[WORKER].state = "ready"
        engine.release.set()
        assert await content_of(await running) == "You said: hold"


async def test_prompts_in_preparation_have_a_place_in_the_line(start, ask, engine: FakeEngine, monkeypatch, eventually):
    render, entered, go_on = engine.render, [], threading.Event()

    def slow(messages, **options):
        entered.append(messages)
        assert go_on.wait(PATIENCE)
        return render(messages, **options)

    monkeypatch.setattr(engine, "render", slow)
    async with start(max_queue=3) as client:
        slow_ones = [asyncio.create_task(client.post(URL, json=ask("x"))) for _ in range(4)]
        await eventually(lambda: len(client.app[WORKER]._open) == 4)
        assert (await client.post(URL, json=ask("one more"))).status == 429
        assert len(entered) == 2, "large prompts do not take every thread"
        slow_ones.pop().cancel()  # gives its place back, though its prompt was never looked at
        await eventually(lambda: len(client.app[WORKER]._open) == 3)
        go_on.set()
        for reply in slow_ones:
            assert await content_of(await reply) == "You said: x"


async def test_shutdown_waits_for_prompts_in_preparation(start, ask, engine: FakeEngine, monkeypatch, eventually):
    render, go_on = engine.render, threading.Event()
    monkeypatch.setattr(engine, "render", lambda *a, **k: go_on.wait(PATIENCE) and render(*a, **k))
    async with start(shutdown_seconds=5) as client:
        reply = asyncio.create_task(client.post(URL, json=ask("hi")))
        await eventually(lambda: len(client.app[WORKER]._open) == 1)
        closing = asyncio.create_task(client.server.close())
        await eventually(lambda: client.app[WORKER].state == "closing")
        go_on.set()
        assert await content_of(await reply) == "You said: hi"
        await closing
        await eventually(lambda: not client.app[WORKER]._thread.is_alive())


async def test_a_prompt_that_is_ready_after_the_server_stopped_is_a_503(
    start, ask, engine: FakeEngine, monkeypatch, eventually
):
    render, go_on = engine.render, threading.Event()
    monkeypatch.setattr(engine, "render", lambda *a, **k: go_on.wait(PATIENCE) and render(*a, **k))
    async with start(shutdown_seconds=0.05) as client:
        reply = asyncio.create_task(client.post(URL, json=ask("hi")))
        await eventually(lambda: len(client.app[WORKER]._open) == 1)
        run = next(iter(client.app[WORKER]._open))
        closing = asyncio.create_task(client.server.close())
        await eventually(run.cancelled.is_set)
        go_on.set()
        assert (await reply).status == 503
        await closing


async def test_a_finished_reply_has_left_its_place(start, ask):
    async with start(max_queue=0) as client:
        for _ in range(50):
            assert (await client.post(URL, json=ask())).status == 200


async def test_requests_in_slots_are_answered_together_and_none_waits_for_the_slowest(
    start, ask, engine: FakeEngine, eventually
):
    engine.slots = 3
    async with start() as client:
        held = [asyncio.create_task(client.post(URL, json=ask(f"hold {index}"))) for index in range(2)]
        await eventually(lambda: len(engine.jobs) == 2)
        for index in range(5):
            assert await content_of(await client.post(URL, json=ask(f"{index}"))) == f"You said: {index}"
        await eventually(lambda: engine.running == 2)  # the answer may be there before the place is free
        assert not any(reply.done() for reply in held)
        engine.release.set()
        assert [await content_of(await reply) for reply in held] == ["You said: hold 0", "You said: hold 1"]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_goes_away_frees_its_slot_while_others_go_on(
    start, ask, engine: FakeEngine, eventually, stream
):
    engine.slots = 2
    async with start() as client:
        stays = asyncio.create_task(client.post(URL, json=ask("hold this")))
        leaves = asyncio.create_task(client.post(URL, json=ask("hold that", stream=stream)))
        await eventually(lambda: len(engine.jobs) == 2)
        if stream:
            (await leaves).close()
        else:
            leaves.cancel()
        await eventually(lambda: engine.ended == ["abandoned"])
        assert engine.running == 1 and not stays.done()
        engine.release.set()
        assert await content_of(await stays) == "You said: hold this"


@pytest.mark.parametrize("where", ["running", "waiting", "preparing"])
async def test_a_request_that_takes_too_long_is_a_504_and_frees_its_place(
    start, ask, engine: FakeEngine, eventually, monkeypatch, where
):
    async with start(request_seconds=0.2) as client:
        if where == "preparing":
            render = engine.render
            monkeypatch.setattr(engine, "render", lambda *a, **k: engine.release.wait(PATIENCE) and render(*a, **k))
        elif where == "waiting":
            asyncio.create_task(client.post(URL, json=ask("hold the slot", stream=True)))  # noqa: RUF006
            await eventually(lambda: len(engine.jobs) == 1)
        response = await client.post(URL, json=ask("hold"))
        assert (response.status, (await response.json())["error"]["code"]) == (504, "timeout")
        assert response.headers["x-should-retry"] == "false"
        await eventually(lambda: not client.app[WORKER]._open)
        engine.release.set()
        assert await content_of(await client.post(URL, json=ask("next"))) == "You said: next"


async def test_a_stream_that_takes_too_long_ends_with_an_error_frame(start, ask, engine: FakeEngine, eventually):
    async with start(request_seconds=0.2, heartbeat_seconds=0.05) as client:
        text = await (await client.post(URL, json=ask("hold", stream=True))).text()
        *_, error, done, _ = text.split("\n\n")
        assert json.loads(error.removeprefix("data: "))["error"]["code"] == "timeout" and done == "data: [DONE]"
        await eventually(lambda: engine.ended == ["abandoned"])


class Panic(BaseException):
    """As what a library written in Rust raises when it panics."""


@pytest.mark.parametrize("error", [MemoryError("the device is full"), Panic("the device is full")])
async def test_an_engine_that_breaks_fails_every_open_request_and_shows_it(
    start, ask, engine: FakeEngine, eventually, caplog, error
):
    engine.slots = 2
    async with start() as client:
        bodies = [ask("hold"), ask("hold", stream=True), ask("waits")]
        opened = []
        for count, body in enumerate(bodies, 1):
            opened.append(asyncio.create_task(client.post(URL, json=body)))
            await eventually(lambda count=count: len(client.app[WORKER]._open) == count)
        await eventually(lambda: len(engine.jobs) == 2)
        assert "engine_up 1.0" in await (await client.get("/metrics")).text()
        engine.broken = error
        whole, streamed, waited = await asyncio.wait_for(asyncio.gather(*opened), PATIENCE)
        for response in (whole, waited):
            assert response.status == 503 and "stopped working" in (await response.json())["error"]["message"]
        assert '"code":"unavailable"' in await streamed.text()
        later = await client.post(URL, json=ask())
        assert (later.status, (await later.json())["error"]["code"]) == (503, "unavailable")
        assert (await client.get("/v1/health/ready")).status == 503
        assert (await client.get("/v1/health/live")).status == 200
        assert "engine_up 0.0" in await (await client.get("/metrics")).text()
    assert "the engine is broken" in caplog.text and "the device is full" in caplog.text


@pytest.mark.parametrize("error", [ValueError("never fits"), MemoryError("never fits")])
async def test_a_job_that_the_engine_refuses_fails_alone(client, ask, engine: FakeEngine, monkeypatch, caplog, error):
    submit = engine.submit

    def picky(job):
        if job.max_new_tokens == 9:
            raise error
        return submit(job)

    monkeypatch.setattr(engine, "submit", picky)
    assert (await client.post(URL, json=ask(max_tokens=9))).status == 500
    assert "never fits" in caplog.text
    assert await content_of(await client.post(URL, json=ask("fine"))) == "You said: fine"


async def test_an_engine_that_raises_fails_that_request_alone(client, ask, caplog):
    other = asyncio.create_task(client.post(URL, json=ask("fine")))
    response = await client.post(URL, json=ask("explode"))
    assert response.status == 500
    error = (await response.json())["error"]
    assert error["type"] == "server_error" and "secret" not in error["message"]
    assert "a secret of the engine" in caplog.text
    assert await content_of(await other) == "You said: fine"
    assert await content_of(await client.post(URL, json=ask("later"))) == "You said: later"


async def test_an_engine_that_raises_in_a_stream_sends_an_error_frame(client, ask, sdk: openai.AsyncOpenAI, caplog):
    caplog.set_level("INFO")
    response = await client.post(URL, json=ask("explode", stream=True))
    *chunks, error, done, rest = (await response.text()).split("\n\n")
    assert len(chunks) == 2 and (done, rest) == ("data: [DONE]", "")
    assert json.loads(error.removeprefix("data: "))["error"]["code"] == "internal_error"
    with pytest.raises(openai.APIError) as caught:
        async for _ in await sdk.chat.completions.create(**ask("explode", stream=True)):
            pass
    assert caught.value.code == "internal_error"
    assert '"status":200' in caplog.text and '"error":"internal_error"' in caplog.text


async def test_a_silent_stream_has_heartbeats(start, ask, engine: FakeEngine):
    async with start(heartbeat_seconds=0.02) as client:
        response = await client.post(URL, json=ask("hold", stream=True))
        chunks = []
        while len(chunks) < 5:
            line = await response.content.readline()
            if line.startswith(b"data: "):
                chunks.append(json.loads(line.removeprefix(b"data: ")))
        assert [chunk["choices"][0]["delta"] for chunk in chunks[2:]] == [{}] * 3
        assert {chunk["choices"][0]["finish_reason"] for chunk in chunks} == {None}
        engine.release.set()
        assert (await response.text()).endswith("data: [DONE]\n\n")


async def test_the_role_chunk_comes_before_the_first_canvas(client, ask, engine: FakeEngine, eventually):
    blocking = asyncio.create_task(client.post(URL, json=ask("hold")))
    await eventually(lambda: len(engine.jobs) == 1)
    response = await client.post(URL, json=ask("waits in the line", stream=True))
    first = json.loads((await response.content.readline()).removeprefix(b"data: "))
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert len(engine.jobs) == 1
    engine.release.set()
    await blocking


async def test_shutdown_lets_open_replies_finish(start, ask, engine: FakeEngine, eventually):
    async with start(shutdown_seconds=5) as client:
        reply = asyncio.create_task(client.post(URL, json=ask("hold")))
        await eventually(lambda: len(engine.jobs) == 1)
        closing = asyncio.create_task(client.server.close())
        await eventually(lambda: client.app[WORKER].state == "closing")
        engine.release.set()
        assert await content_of(await reply) == "You said: hold"
        await closing


async def test_shutdown_fails_what_does_not_finish_in_time(start, ask, engine: FakeEngine, eventually):
    async with start(shutdown_seconds=0.1) as client:
        bodies = [ask("hold"), ask("hi"), ask("hold", stream=True)]
        open_requests = [asyncio.create_task(client.post(URL, json=body)) for body in bodies]
        await eventually(lambda: len(client.app[WORKER]._open) == 3)
        closing = asyncio.create_task(client.server.close())
        running, waiting, streamed = await asyncio.gather(*open_requests)
        for response in (running, waiting):
            assert response.status == 503
            assert (await response.json())["error"]["code"] == "unavailable"
        *_, error, done, _ = (await streamed.text()).split("\n\n")
        assert json.loads(error.removeprefix("data: "))["error"]["code"] == "unavailable"
        assert done == "data: [DONE]"
        await closing


async def test_a_last_step_that_takes_too_long_does_not_make_the_engine_broken(
    start, ask, engine: FakeEngine, monkeypatch, eventually, caplog
):
    """The server goes on without it and closes the engine, which the step then finds closed."""
    monkeypatch.setattr("serve.worker._LAST_STEP", 0.05)
    entered = threading.Event()

    def slow():
        entered.set()
        assert engine.release.wait(PATIENCE)
        raise RuntimeError("the engine was closed")

    monkeypatch.setattr(engine, "step", slow)
    async with start(shutdown_seconds=0.05) as client:
        reply = asyncio.create_task(client.post(URL, json=ask("hi")))
        await eventually(entered.is_set)
        await client.server.close()
        assert (await reply).status == 503
        assert client.app[WORKER]._thread.is_alive()
        engine.release.set()
        await eventually(lambda: not client.app[WORKER]._thread.is_alive())
        assert "broken" not in caplog.text and client.app[WORKER].state == "closing"


async def test_requests_wait_for_the_warm_up_and_health_says_so(start, ask, engine: FakeEngine, monkeypatch):
    monkeypatch.setattr(engine, "warm_up", lambda progress: engine.release.wait(5))
    engine.warm_up_error = RuntimeError("only tells the fixture not to wait")
    async with start() as client:
        early = asyncio.create_task(client.post(URL, json=ask("early")))
        await asyncio.sleep(0.02)
        assert (await client.get("/v1/health/live")).status == 200
        for path in ("/v1/health/ready", "/health"):
            assert (await client.get(path)).status == 503
        assert not early.done()
        engine.release.set()
        assert await content_of(await early) == "You said: early"
        assert (await client.get("/v1/health/ready")).status == 200


async def test_an_engine_that_cannot_warm_up_refuses_every_request(start, ask, engine: FakeEngine, eventually, caplog):
    engine.warm_up_error = MemoryError("no room")
    async with start() as client:
        await eventually(lambda: client.app[WORKER].state == "failed")
        response = await client.post(URL, json=ask())
        assert (response.status, (await response.json())["error"]["code"]) == (503, "unavailable")
        assert (await client.get("/v1/health/ready")).status == 503
    assert "no room" in caplog.text


async def test_drafts_that_nobody_reads_do_not_pile_up():
    run = Run("id", None)
    for step in range(1000):
        run.post(Draft((1, 2), step))
    await asyncio.sleep(0)
    assert len(run._events) == 1 and await run.next() == Draft((1, 2), 999)
    run.post(Draft((1, 2), 1000))
    run.post(Canvas((1, 2), 48))
    await asyncio.sleep(0)
    assert await run.next() == Canvas((1, 2), 48) and await run.next(silence=0.01) is None


async def test_the_time_of_a_request_ends_for_one_that_reads_slowly_too():
    run = Run("id", 0.01)
    run.post(Canvas((1, 2), 48))
    await asyncio.sleep(0.02)
    with pytest.raises(TimedOutError):
        await run.next()
