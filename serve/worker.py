"""The one thread that owns the engine, and the line of requests before it.

asyncio side                                      worker's thread
  worker.place() -> Run                             a place, before any work: 429 and 503 cost nothing
  worker.submit(run, job) ---- bounded line ------> engine.generate(job)
  run.next() <------ loop.call_soon_threadsafe ---- immutable events

A run whose client is gone leaves the line at once, or ends after the canvas under way. An engine that raises fails
that run alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Iterator
from typing import Literal, TypeVar

from serve.engine import Engine, Event, Finished, Job
from serve.errors import ApiError, InternalError, OverloadedError, UnavailableError
from serve.metrics import Metrics

T = TypeVar("T")

logger = logging.getLogger("serve")
State = Literal["warming", "ready", "failed", "closing"]
_REFUSALS: dict[State, str] = {
    "failed": "The model could not be started.",
    "closing": "The server is stopping.",
}
_STOPPED = "The server stopped before this reply was complete."


class Run:
    """One request's place and what becomes of its job: the asyncio side awaits `next`, the worker's thread posts."""

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.asked = time.monotonic()
        self.cancelled = threading.Event()
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event | ApiError] = asyncio.Queue()

    def post(self, event: Event | ApiError) -> None:
        """From any thread: hands over an event, or the error that ends the run."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to read it
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def next(self, silence: float | None = None) -> Event | None:
        """The next event, or None after `silence` seconds without one.

        Raises:
            ApiError: the run failed; there is no next event.
        """
        try:
            event = await asyncio.wait_for(self._events.get(), silence)
        except TimeoutError:
            return None
        if isinstance(event, ApiError):
            raise event
        return event

    async def prepare(self, work: asyncio.Future[T]) -> T:
        """The result of `work`, which is given up when the run fails first.

        Raises:
            ApiError: the run failed.
        """
        failure = asyncio.ensure_future(self.next())  # before its job is submitted, nothing else is posted
        try:
            await asyncio.wait((work, failure), return_when=asyncio.FIRST_COMPLETED)
            if failure.done():
                failure.result()
            return await work
        finally:
            failure.cancel()
            work.cancel()


class Worker:
    """Runs jobs one after another on its own thread. Methods are for the event loop's thread."""

    def __init__(self, engine: Engine, max_queue: int, metrics: Metrics) -> None:
        self.state: State = "warming"
        self.warm = asyncio.Event()
        """Set once the warm-up is over, well or badly; `state` says which."""
        self._engine = engine
        self._metrics = metrics
        self._limit = 1 + max_queue  # the one that runs, and those that wait
        self._waiting: dict[Run, Job] = {}  # in the order of the line
        self._open: set[Run] = set()  # every run that somebody still wants: in preparation, waiting, running
        self._running: Run | None = None
        self._changed = threading.Condition()  # guards the three above and `state`; told when there is work, or no more
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)

    @property
    def running(self) -> int:
        """How many runs the engine works on."""
        return int(self._running is not None)

    @property
    def waiting(self) -> int:
        """How many runs wait for the engine, those included whose prompt is still being prepared."""
        with self._changed:
            return len(self._open - {self._running})

    def start(self) -> None:
        """Starts the thread, which first warms the engine up; jobs are taken from now on and wait for that."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    @contextlib.contextmanager
    def place(self, request_id: str) -> Iterator[Run]:
        """Takes a place for a job that `submit` brings; leaving the context gives it back and ends the job.

        Raises:
            OverloadedError: the line is full.
            UnavailableError: the server is stopping, or the engine did not start.
        """
        run = Run(request_id)
        with self._changed:
            if self.state in ("failed", "closing"):
                raise UnavailableError(_REFUSALS[self.state])
            if len(self._open) >= self._limit:
                raise OverloadedError(f"{len(self._open)} requests are open already; this server takes no more")
            self._open.add(run)
        try:
            yield run
        finally:
            self._withdraw(run)

    def submit(self, run: Run, job: Job) -> None:
        """Puts the job of a run in the line.

        Raises:
            UnavailableError: the engine did not start, or the server stopped while the job was prepared.
        """
        with self._changed:
            if self.state == "failed":
                raise UnavailableError(_REFUSALS["failed"])
            if run.cancelled.is_set():
                raise UnavailableError(_STOPPED)
            self._waiting[run] = job
            self._changed.notify_all()

    async def close(self, grace: float) -> None:
        """Takes no more jobs, lets the open ones go on for `grace` seconds, then fails what is left."""
        with self._changed:
            self.state = "closing"
            self._changed.notify_all()
        deadline = time.monotonic() + grace
        while self._open and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        with self._changed:
            left = list(self._open)
            self._waiting.clear()
            for run in left:
                run.cancelled.set()
        for run in left:
            run.post(UnavailableError(_STOPPED))

    def _withdraw(self, run: Run) -> None:
        run.cancelled.set()
        with self._changed:
            self._waiting.pop(run, None)
            self._open.discard(run)
            self._changed.notify_all()

    # ---------------------------------------------------------------- on the worker's thread
    def _work(self) -> None:
        self._warm_up()
        while (taken := self._take()) is not None:
            run, job = taken
            last = self._carry_out(run, job)
            with self._changed:
                self._open.discard(run)
                self._running = None
            run.post(last)  # only now: whoever reads it finds the place free

    def _warm_up(self) -> None:
        start = time.monotonic()
        try:
            self._engine.warm_up()
            state: State = "ready"
            logger.info("ready after %.1f s of warm-up", time.monotonic() - start)
        except Exception:
            state = "failed"
            logger.exception("the model did not start")
        with self._changed:
            if self.state == "warming":
                self.state = state
            failed = list(self._waiting) if state == "failed" else []
            if failed:
                self._waiting.clear()
                self._open.clear()
        for run in failed:
            run.post(UnavailableError(_REFUSALS["failed"]))
        with contextlib.suppress(RuntimeError):  # the loop is closed: the server is gone already
            self._loop.call_soon_threadsafe(self.warm.set)

    def _take(self) -> tuple[Run, Job] | None:
        """The next of the line; None when none will come: the engine failed, or the server closes and all is done."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._over())
            self._running = run = next(iter(self._waiting), None)
            return None if run is None else (run, self._waiting.pop(run))

    def _over(self) -> bool:
        return self.state == "failed" or (self.state == "closing" and not self._open)

    def _carry_out(self, run: Run, job: Job) -> Finished | ApiError:
        """Posts the canvases of a run and returns what ends it."""
        try:
            with contextlib.closing(self._metrics.watch(self._engine.generate(job), run.asked)) as events:
                for event in events:
                    if isinstance(event, Finished):
                        return event
                    if run.cancelled.is_set():
                        return Finished("stop")  # nobody reads it
                    run.post(event)
            raise RuntimeError("the engine ended without saying why")
        except Exception:
            logger.exception("request %s failed in the engine", run.request_id)
            return InternalError(run.request_id)
