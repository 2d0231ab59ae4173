"""The engine over a device that is computed by hand: whatever comes when, every request gets its own answer."""

from __future__ import annotations

import random

import pytest
from engine.hand_device import BAD, UNLUCKY, HandDevice, answer
from jax.errors import JaxRuntimeError

from dgemma_jax.engine.batch import Canvas
from dgemma_jax.engine.core import Core
from dgemma_jax.engine.events import (
    Draft,
    EngineDeadError,
    Event,
    Failed,
    Prefilled,
    QueueFullError,
    RefusedError,
    Request,
)
from dgemma_jax.generate import CanvasCommitted, Finished

Log = dict[int, list[Event]]


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class TimedDevice(HandDevice):
    """Each of its steps takes so many seconds of a clock."""

    def __init__(self, clock: Clock, seconds: float, slots: int = 3, total: int = 10**9, together: int = 1) -> None:
        super().__init__(slots, total, together)
        self.clock, self.seconds = clock, seconds

    def denoise(self, most: int) -> list[Canvas]:
        canvases = super().denoise(most)
        self.clock.now += self.seconds * self.calls[-1]
        return canvases

    @property
    def calls(self) -> list[int]:
        """The steps of each call."""
        return [int(entry.split()[1]) for entry in self.log if entry.startswith("denoise")]


def run(core: Core, log: Log | None = None) -> Log:
    log = {} if log is None else log
    for _ in range(100_000):
        if not core.busy:
            return log
        for id, event in core.step():
            log.setdefault(id, []).append(event)
    raise AssertionError("the engine never ends")


def text(events: list[Event]) -> list[Event]:
    return [event for event in events if isinstance(event, CanvasCommitted | Finished)]


def request(first: int = 5, length: int = 3, **fields: object) -> Request:
    return Request(tokens=(first,) * length, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(200))
def test_every_request_gets_its_own_answer_whatever_comes_when(seed: int) -> None:
    rng = random.Random(seed)
    slots, total = rng.randint(1, 5), rng.choice([10**9, 120_000])
    clock, seconds = Clock(), rng.choice([0.0, 0.004, 0.05])
    device = TimedDevice(clock, seconds, slots, total, together=rng.randint(1, slots))
    core = Core(device, steps=rng.choice([None, None, 1, 2, 4]), max_queue=None, clock=clock)
    wanted: dict[int, Request] = {}
    cancelled: dict[int, int] = {}
    log: Log = {}
    for _ in range(rng.randint(20, 120)):
        if rng.random() < 0.2:
            length = rng.choice([1, 3, 40] * 4 + [1500])
            tokens = tuple(rng.randrange(20) for _ in range(length))
            one = Request(
                tokens=tokens,
                max_new_tokens=rng.randint(1, 30),
                seed=rng.randrange(3),
                draft_every=rng.choice([0, 0, 1, 3]),
                timeout=rng.choice([None, 3.0]),
            )
            wanted[core.submit(one)] = one
        if wanted and rng.random() < 0.05:
            id = rng.choice(list(wanted))
            core.cancel(id)
            cancelled.setdefault(id, len(log.get(id, [])))
        clock.now += rng.choice([0.0, 0.1])
        for id, event in core.step():
            log.setdefault(id, []).append(event)
    run(core, log)
    assert not device.rows and device.reading is None, "all is freed"
    for id, one in wanted.items():
        events, whole = log.get(id, []), answer(one)
        if id in cancelled:
            assert len(events) == cancelled[id], "no event after a cancellation"
            assert text(events) == whole[: len(text(events))]
        elif isinstance(events[-1], Failed):
            assert one.timeout or one.tokens[0] in (BAD, UNLUCKY)
            assert text(events) == whole[: len(text(events))]
        else:
            assert text(events) == whole and isinstance(events[0], Prefilled)


def test_a_long_prompt_delays_running_canvases_by_one_pass_at_a_time() -> None:
    device = HandDevice()
    core = Core(device, steps=4, max_queue=None)
    core.submit(request(max_new_tokens=400))
    core.step()
    core.submit(request(6, 4000, max_new_tokens=4))
    run(core)
    work = "".join(entry[0] for entry in device.log if not entry.startswith("commit"))
    assert work.count("r") == 5
    assert "rr" not in work.removeprefix("r"), "between two passes there is a step"
    assert "denoise 1" in device.log


def test_short_prompts_are_read_in_one_pass_and_one_of_several_passes_by_itself() -> None:
    device = HandDevice(slots=9, together=3)
    core = Core(device, steps=4, max_queue=None)
    for length in (3, 8, 3, 3, 3, 9, 3, 3):  # two canvases are eight tokens
        core.submit(request(5, length, max_new_tokens=400))
    run(core)
    passes = [entry.split()[1:] for entry in device.log if entry.startswith("read")]
    assert passes == [["0", "1", "2"], ["3", "4"], ["5"], ["6", "7"]]


def test_of_prompts_read_together_one_fails_alone() -> None:
    device = HandDevice(slots=4, together=4)
    core = Core(device, steps=4, max_queue=None)
    ids = [core.submit(request(first, max_new_tokens=20)) for first in (5, 6, BAD, 7)]
    log = run(core)
    assert [entry for entry in device.log if entry.startswith("read")] == ["read 0 1 2 3", *(f"read {i}" for i in ids)]
    for id, first in zip(ids, (5, 6, None, 7), strict=True):
        if first is None:
            assert [type(event) for event in log[id]] == [Failed]
        else:
            assert text(log[id]) == answer(request(first, max_new_tokens=20))


def test_prompts_are_read_together_only_where_their_caches_fit() -> None:
    budget = HandDevice(slots=4).budget
    for total, together in ((budget.needs([30] * 4, reading=4), 4), (budget.needs([30] * 4), 1)):
        device = HandDevice(slots=4, total=total, together=4)
        core = Core(device, steps=4, max_queue=None)
        for _ in range(4):
            core.submit(request(max_new_tokens=27))
        run(core)
        assert max(len(entry.split()) - 1 for entry in device.log if entry.startswith("read")) == together


def test_the_memory_that_running_requests_take_is_told() -> None:
    device = HandDevice(slots=2)
    core = Core(device, steps=1, max_queue=None)
    assert core.memory_share == 0
    core.submit(request(max_new_tokens=40))
    core.step()
    one = core.memory_share
    core.submit(request(max_new_tokens=40))
    for _ in range(3):
        core.step()
    assert 0 < one < core.memory_share <= 1
    run(core)
    core.step()
    assert core.memory_share == 0


def test_a_canvas_that_is_done_does_not_wait_for_the_slowest() -> None:
    device = HandDevice(slots=2)
    core = Core(device, steps=9, max_queue=None)
    first, second = (core.submit(request(t, max_new_tokens=40)) for t in (5, 7))
    log = run(core)
    order = [entry for entry in device.log if entry.startswith("commit")]
    assert {f"commit {first}", f"commit {second}"} <= set(order)
    for before, entry in zip(device.log, device.log[1:], strict=False):
        assert not entry.startswith("commit") or before.startswith("denoise"), "at once"
    assert text(log[first]) == answer(request(5, max_new_tokens=40))


def test_canvases_that_are_done_together_are_committed_together_without_one_that_is_cancelled() -> None:
    device = HandDevice(slots=4, together=3)
    core = Core(device, steps=9, max_queue=None)
    same = [core.submit(request(max_new_tokens=400)) for _ in range(3)]  # so they take the same steps
    for _ in range(3):
        core.step()
    assert device.log[-1] == "commit 0 1 2"
    core.step()
    core.cancel(same[1])
    core.step()
    assert device.log[-1] == "commit 0 2"


@pytest.mark.parametrize(("seconds", "most"), [(0.5, 1), (0.02, 1), (0.017, 2), (0.008, 4), (0.001, 9), (0.0, 9)])
def test_a_call_takes_as_many_steps_as_take_35_ms_and_at_least_one(seconds: float, most: int) -> None:
    device = TimedDevice(clock := Clock(), seconds)
    core = Core(device, clock=clock)
    core.submit(one := request(max_new_tokens=400))
    log = run(core)
    assert device.calls[0] == 1, "nothing is known of the first"
    assert max(device.calls) == most, "nine are all of a canvas"
    assert text(log[0]) == answer(one)


def test_while_somebody_waits_for_a_place_each_call_is_one_step() -> None:
    device = TimedDevice(clock := Clock(), seconds=0.001, slots=1)
    core = Core(device, clock=clock)
    for first in (5, 6):
        core.submit(request(first, max_new_tokens=400))
    while core.waiting:
        core.step()
    before = device.calls
    run(core)
    assert set(before) == {1} and max(device.calls[len(before) :]) > 1


def test_whoever_joins_makes_steps_slower() -> None:
    """So many as one row had time for may take too long with two."""
    device = TimedDevice(clock := Clock(), seconds=0.001)
    core = Core(device, clock=clock)
    core.submit(request(max_new_tokens=400))
    while max(device.calls, default=0) <= 1:
        core.step()
    core.submit(request(6, max_new_tokens=400))
    before = len(device.calls)
    while len(device.calls) == before:
        core.step()
    assert device.log[-2:] == ["read 1", "denoise 1"]


def test_nobody_overtakes_the_first_of_the_line() -> None:
    """Three rows of 512 positions fit, a row of 2048 only alone: the small ones behind it wait."""
    probe = HandDevice(slots=4)
    device = HandDevice(slots=4, total=probe.budget.needs([2048]))
    core = Core(device, steps=4, max_queue=None)
    ids = [core.submit(request(5, n, max_new_tokens=4)) for n in (3, 1500, 3)]
    log: Log = {}
    order = [id for id, event in _events(core, log) if isinstance(event, Prefilled)]
    assert order == ids


def _events(core: Core, log: Log) -> list[tuple[int, Event]]:
    events = []
    while core.busy:
        events += core.step()
    return events


@pytest.mark.parametrize("steps", [9, None])
def test_drafts_come_as_often_as_asked(steps: int | None) -> None:
    device = HandDevice()
    core = Core(device, steps=steps, clock=Clock())
    one = request(5, max_new_tokens=40, draft_every=2)
    id = core.submit(one)
    events = run(core)[id]
    expected: list[int] = []
    for event in answer(one)[:-1]:
        assert isinstance(event, CanvasCommitted)
        expected += range(2, event.steps, 2)
    assert [event.step for event in events if isinstance(event, Draft)] == expected != []


def test_a_request_fails_alone() -> None:
    core = Core(HandDevice(), steps=4, max_queue=None)
    good, bad, unlucky = (core.submit(request(t, max_new_tokens=20)) for t in (5, BAD, UNLUCKY))
    log = run(core)
    assert text(log[good]) == answer(request(5, max_new_tokens=20))
    (failed,) = log[bad]
    assert isinstance(failed, Failed) and str(failed.error) == "this prompt cannot be read"
    assert isinstance(log[unlucky][-1], Failed) and isinstance(log[unlucky][-1].error, ArithmeticError)
    assert core.error is None


def test_a_crash_fails_what_is_open_and_the_engine_takes_no_more() -> None:
    device = HandDevice(slots=1)
    core = Core(device, steps=4, max_queue=None)
    ids = [core.submit(request()) for _ in range(3)]
    core.step()
    device.crash = RuntimeError("out of order")
    last = {id: event for id, event in core.step() if isinstance(event, Failed)}
    assert list(last) == ids
    assert all(isinstance(event.error, EngineDeadError) for event in last.values())
    with pytest.raises(EngineDeadError, match="out of order"):
        core.submit(request())
    assert not core.busy and core.step() == []
    assert core.running == core.waiting == core.memory_share == 0, "what a server shows of it"


INTERNAL = "INTERNAL: CUDA_ERROR_ILLEGAL_ADDRESS"
OUT_OF_MEMORY = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 3 bytes."


@pytest.mark.parametrize("together", [1, 3])
@pytest.mark.parametrize(
    ("error", "intact"), [(JaxRuntimeError(INTERNAL), True), (JaxRuntimeError(OUT_OF_MEMORY), False)]
)
def test_a_device_that_fails_while_a_prompt_is_read_is_a_crash(error: Exception, intact: bool, together: int) -> None:
    """Also where nothing else runs: a server must not answer one request after another with an error of its own."""
    device = HandDevice(together=together)
    core = Core(device)
    ids = [core.submit(request()) for _ in range(3)]
    device.read_error, device.intact = error, intact
    log = run(core)
    assert core.error is error and list(log) == ids
    assert all(isinstance(event.error, EngineDeadError) for (event,) in log.values() if isinstance(event, Failed))


def test_a_prompt_for_which_there_is_no_memory_fails_alone() -> None:
    device = HandDevice(together=2)
    core = Core(device)
    running = core.submit(request(max_new_tokens=40))
    core.step()
    large = [core.submit(request(6)) for _ in range(2)]
    log: Log = {}
    device.read_error = JaxRuntimeError(OUT_OF_MEMORY)
    while len(log.keys() & large) < 2:
        log |= {id: [*log.get(id, []), event] for id, event in core.step()}
    device.read_error = None
    later = core.submit(request(7))
    run(core, log)
    assert core.error is None
    assert [str(log[id][-1].error) for id in large] == [OUT_OF_MEMORY] * 2  # type: ignore[union-attr]
    assert text(log[later]) == answer(request(7)) and text(log[running]) == answer(request(max_new_tokens=40))


def test_a_request_whose_row_cannot_be_given_up_is_told_of_the_crash() -> None:
    class Stuck(HandDevice):
        def leave(self, id: int) -> None:
            raise RuntimeError("out of order")

    core = Core(Stuck())
    failed = core.submit(request(BAD))
    assert [type(event) for event in run(core)[failed]] == [Failed] and core.error is not None


def test_a_panic_is_a_crash() -> None:
    class Panic(BaseException):
        """As what a library written in Rust raises."""

    device = HandDevice()
    core = Core(device)
    id = core.submit(request(max_new_tokens=40))
    core.step()
    device.crash = Panic("index out of bounds")
    ((told, event),) = core.step()
    assert told == id and isinstance(event, Failed) and isinstance(event.error.__cause__, Panic)


def test_an_interrupt_is_its_callers_and_the_last_thing_that_the_engine_does() -> None:
    """It may come between a canvas and its commit: that canvas would be told twice."""
    device = HandDevice()
    core = Core(device)
    id = core.submit(request(max_new_tokens=40))
    core.step()
    device.crash = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        core.step()
    device.crash = None
    ((told, event),) = core.step()
    assert told == id and isinstance(event, Failed) and isinstance(event.error.__cause__, KeyboardInterrupt)
    with pytest.raises(EngineDeadError):
        core.submit(request())


def test_a_cancelled_request_gives_its_slot_to_the_next_after_the_step_that_is_being_taken() -> None:
    class Cancelling(HandDevice):
        def denoise(self, most: int) -> list[Canvas]:
            if len(self.log) == 4:
                core.cancel(first)
            return super().denoise(most)

    device = Cancelling(slots=1)
    core = Core(device, steps=1)
    first, second = (core.submit(request(t, max_new_tokens=400)) for t in (5, 6))
    for _ in range(8):
        core.step()
    before = device.log.index(f"read {second}")
    assert device.log[before - 1] == "denoise 1" and before == 5, device.log
    assert list(device.rows) == [second]


def test_a_request_that_can_never_fit_is_refused_with_the_numbers() -> None:
    probe = HandDevice()
    core = Core(HandDevice(total=probe.budget.needs([512])), steps=4, max_queue=None)
    with pytest.raises(RefusedError, match=r"a request of 604 tokens, .*, needs 98,496 bytes .* has 24,768"):
        core.submit(request(5, 600, max_new_tokens=4))
    with pytest.raises(RefusedError, match="a prompt of 4095 tokens leaves no room for a canvas of 4"):
        core.submit(request(5, 4095))


def test_the_line_is_bounded() -> None:
    core = Core(HandDevice(slots=2), steps=4, max_queue=1)
    ids = [core.submit(request()) for _ in range(3)]
    with pytest.raises(QueueFullError, match="3 requests are open already"):
        core.submit(request())
    assert set(run(core)) == set(ids)
    core.submit(request())


def test_a_request_whose_time_is_over_fails_and_frees_its_row() -> None:
    device, clock = HandDevice(slots=1), Clock()
    core = Core(device, steps=1, max_queue=None, clock=clock)
    late = core.submit(request(timeout=2.0, max_new_tokens=400))
    patient = core.submit(request(timeout=30.0))
    core.step()
    clock.now = 2.0
    log = run(core)
    assert isinstance(log[late][-1], Failed) and isinstance(log[late][-1].error, TimeoutError)
    assert text(log[patient]) == answer(request())
