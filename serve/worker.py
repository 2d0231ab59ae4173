"""The one thread that owns the engine, and the places of the requests it works on together.

asyncio side                                      worker's thread
  worker.place() -> Run                             a place, before any work: 429 and 503 cost nothing
  worker.submit(run, job) ------------------------> engine.submit(job); engine.step(), again and again
  run.next() <------ loop.call_soon_threadsafe ---- immutable events

A run whose client is gone leaves the engine before its next step. A job that fails, or that the engine does not take,
fails its run alone; an engine whose step raises is broken: every run fails, no more are taken, and health, log and
metrics say so.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Literal, TypeVar

from serve.bodies import STOPPED
from serve.engine import Draft, Engine, Event, Failed, Finished, FormatError, Job
from serve.errors import (
    ApiError,
    InternalError,
    InvalidRequestError,
    OverloadedError,
    TimedOutError,
    UnavailableError,
)
from serve.metrics import Metrics, Progress

T = TypeVar("T")

logger = logging.getLogger("serve")
State = Literal["warming", "ready", "failed", "closing"]
_BROKEN = "The model has stopped working; the server's log has the reason."
_STOPPED = "The server stopped before this reply was complete."
_LAST_STEP = 2.0
"""Seconds that the end of the server waits for the step that is being taken."""


class Run:
    """One request's place and what becomes of its job: the asyncio side awaits `next`, the worker's thread posts.

    `limit`: seconds from now after which it fails.
    """

    def __init__(self, request_id: str, limit: float | None) -> None:
        self.request_id = request_id
        self.progress = Progress()
        self.cancelled = threading.Event()
        self._limit = limit
        self._until = None if limit is None else time.monotonic() + limit
        self._loop = asyncio.get_running_loop()
        self._events: deque[Event | ApiError] = deque()
        self._something = asyncio.Event()

    def post(self, event: Event | ApiError) -> None:
        """From any thread: hands over an event, or the error that ends the run.

        A draft that was not read by then is forgotten, so that drafts never pile up.
        """
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to read it
            self._loop.call_soon_threadsafe(self._take, event)

    def _take(self, event: Event | ApiError) -> None:
        if self._events and isinstance(self._events[-1], Draft):
            self._events.pop()
        self._events.append(event)
        self._something.set()

    async def next(self, silence: float | None = None) -> Event | None:
        """The next event, or None after `silence` seconds without one.

        Raises:
            ApiError: the run failed, or its time is over; there is no next event.
        """
        left = None if self._until is None else max(0.0, self._until - time.monotonic())
        waits = [seconds for seconds in (silence, left) if seconds is not None]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(waits, default=None)):
                await self._something.wait()
        if self._until is not None and time.monotonic() >= self._until:
            raise TimedOutError(f"The request took longer than the {self._limit:g} s it may take.")
        if not self._events:
            return None
        event = self._events.popleft()
        if not self._events:
            self._something.clear()
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
    """Runs jobs together on its own thread. Methods are for the event loop's thread.

    max_queue: runs that may be open beside those in the engine's slots. limit: seconds that a run may take.
    """

    def __init__(self, engine: Engine, max_queue: int, limit: float | None, metrics: Metrics) -> None:
        self.state: State = "warming"
        self.warm = asyncio.Event()
        """Set once the warm-up is over, well or badly; `state` says which."""
        self.broken = asyncio.Event()
        """Set when `state` has become "failed"."""
        self.most = engine.slots + max_queue
        """Runs that may be open at once."""
        self._engine = engine
        self._metrics = metrics
        self._limit = limit
        self._arrived: dict[Run, Job] = {}
        self._open: set[Run] = set()  # every run that somebody still wants: in preparation, waiting, running
        self._jobs: dict[int, Run] = {}  # those in the engine, by its ids; only the worker's thread looks at them
        self._changed = threading.Condition()  # guards all but `_jobs`; told when there is work, or no more
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)

    @property
    def running(self) -> int:
        """How many runs the engine works on."""
        return self._engine.running

    @property
    def waiting(self) -> int:
        """How many runs wait for the engine, those included whose prompt is still being prepared."""
        with self._changed:
            return max(0, len(self._open) - self._engine.running)

    def start(self) -> None:
        """Starts the thread, which first warms the engine up; jobs are taken from now on and wait for that."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    @contextlib.contextmanager
    def place(self, request_id: str) -> Iterator[Run]:
        """Takes a place for a job that `submit` brings; leaving the context gives it back and ends the job.

        Raises:
            OverloadedError: all places are taken.
            UnavailableError: the server is stopping, or the engine is broken.
        """
        run = Run(request_id, self._limit)
        with self._changed:
            self._require_life()
            if len(self._open) >= self.most:
                raise OverloadedError(f"{len(self._open)} requests are open already; this server takes no more")
            self._open.add(run)
        try:
            yield run
        finally:
            self._withdraw(run)

    def submit(self, run: Run, job: Job) -> None:
        """Hands the job of a run to the engine.

        Raises:
            UnavailableError: the engine is broken, or the server stopped while the job was prepared.
        """
        with self._changed:
            if self.state == "failed":
                raise UnavailableError(_BROKEN)
            if run.cancelled.is_set():
                raise UnavailableError(_STOPPED)
            self._arrived[run] = job
            self._changed.notify_all()

    async def close(self, grace: float) -> None:
        """Takes no more jobs, lets the open ones go on for `grace` seconds, then fails what is left."""
        with self._changed:
            compiling, self.state = self.state == "warming", "closing"
            self._changed.notify_all()
        deadline = time.monotonic() + grace
        while self._open and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        self._fail_open(_STOPPED)
        if self._thread.is_alive() and not compiling:  # an interpreter that ends under a thread that computes may abort
            await asyncio.to_thread(self._thread.join, _LAST_STEP)

    def _require_life(self) -> None:
        if self.state in ("failed", "closing"):
            raise UnavailableError(_BROKEN if self.state == "failed" else STOPPED)

    def _withdraw(self, run: Run) -> None:
        run.cancelled.set()
        with self._changed:
            self._arrived.pop(run, None)
            self._open.discard(run)
            self._changed.notify_all()

    def _fail_open(self, why: str) -> None:
        with self._changed:
            left = list(self._open)
            self._arrived.clear()
            self._open.clear()
            self._changed.notify_all()
        for run in left:
            run.cancelled.set()
            run.post(UnavailableError(why))

    # ---------------------------------------------------------------- on the worker's thread
    def _work(self) -> None:
        try:
            self._warm_up()
            while self._take_in():
                for id, event in self._engine.step():
                    self._hand_out(id, event)
            for id in self._jobs:
                self._engine.cancel(id)
        except BaseException:  # what a library in Rust raises when it panics is no Exception
            if self._over():  # the engine was closed under a last step that nobody waits for any more
                logger.debug("the last step did not end well", exc_info=True)
                return
            logger.critical("the engine is broken: no request is answered any more", exc_info=True)
            self._pass_to("failed")
            self._fail_open(_BROKEN)

    def _warm_up(self) -> None:
        start = time.monotonic()
        self._engine.warm_up(lambda line: logger.info("compiled: %s", line))
        logger.info("ready after %.1f s of warm-up", time.monotonic() - start)
        self._pass_to("ready")

    def _pass_to(self, state: State) -> None:
        with self._changed:
            if self.state != "closing":
                self.state = state
        with contextlib.suppress(RuntimeError):  # the loop is closed: the server is gone already
            if state == "failed":
                self._loop.call_soon_threadsafe(self.broken.set)
            self._loop.call_soon_threadsafe(self.warm.set)

    def _take_in(self) -> bool:
        """Waits for work and brings the engine what came: new jobs, and whose client is gone. False: no more comes."""
        with self._changed:
            self._changed.wait_for(lambda: self._arrived or self._engine.busy or self._over())
            if self._over():
                return False
            arrived = list(self._arrived.items())
            self._arrived.clear()
        for run, job in arrived:
            try:
                self._jobs[self._engine.submit(job)] = run
            except Exception as error:  # should the engine be broken, its next step says so
                self._end(run, self._told(run, error))
        for id in [id for id, run in self._jobs.items() if run.cancelled.is_set()]:
            self._engine.cancel(id)
            del self._jobs[id]
        return True

    def _over(self) -> bool:
        return self.state == "closing" and not self._open

    def _hand_out(self, id: int, event: Event) -> None:
        run = self._jobs[id]
        self._metrics.add_event(event, run.progress)
        if isinstance(event, Finished | Failed):
            del self._jobs[id]
            self._end(run, self._told(run, event.error) if isinstance(event, Failed) else event)
        else:
            run.post(event)

    def _end(self, run: Run, last: Finished | ApiError) -> None:
        with self._changed:
            self._open.discard(run)
        run.post(last)  # only now: whoever reads it finds the place free

    def _told(self, run: Run, error: Exception) -> ApiError:
        if isinstance(error, FormatError):
            return InvalidRequestError(f"The answer cannot be held to the format that was asked for: {error}")
        logger.error("request %s failed in the engine", run.request_id, exc_info=error)
        return InternalError(run.request_id)
