"""`Engine`: many requests at once over one model, with or without a thread of its own.

In a group of processes (`dgemma_jax.processes`) process 0 has the engine; the others call `follow`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from typing import Any

import jax

from dgemma_jax.engine import offline
from dgemma_jax.engine.core import Core, Events
from dgemma_jax.engine.device import Device, ModelDevice
from dgemma_jax.engine.events import EngineDeadError, Event, Failed, RefusedError, Request
from dgemma_jax.engine.group import Leader
from dgemma_jax.engine.memory import Budget, free_bytes
from dgemma_jax.engine.prefix import PrefixStore, Reuse
from dgemma_jax.generate import Finished
from dgemma_jax.pretrained import Model

Listener = Callable[[Event], None]
logger = logging.getLogger(__name__)


def model_device(
    model: Model,
    slots: int,
    max_context: int | None,
    kv_bytes: int | None,
    prefix_bytes: int | None,
    reuse: Reuse,
    apart: bool,
) -> ModelDevice:
    """The device side of an `Engine`; see there."""
    total = free_bytes() if kv_bytes is None else kv_bytes
    kept = 0 if reuse == "off" else total // 4 if prefix_bytes is None else prefix_bytes
    text = model.config.text
    wanted = min(max_context or text.max_position_embeddings, text.max_position_embeddings)
    budget = Budget(total=total - kept, slots=slots, positions=wanted, text=text, dtype=model.dtype, fixed_rows=apart)
    shortest = model.config.canvas_length + 1
    if wanted < shortest:
        raise RefusedError(f"max_context must be at least {shortest}, a token and a canvas, found {wanted}")
    budget.check(shortest)
    return ModelDevice(model, budget.fitted(), PrefixStore(kept, reuse), apart)


class Engine:
    """Answers requests together, each as `dgemma_jax.stream` would alone.

    Use it in one of two ways: `submit` and `step`, on a thread that the caller owns; or `stream`, `listen` and
    `generate_many`, for which the engine starts a thread. `submit` and `cancel` may be called on any thread.
    """

    def __init__(
        self,
        model: Model,
        *,
        slots: int = 8,
        max_context: int | None = None,
        kv_bytes: int | None = None,
        prefix_bytes: int | None = None,
        reuse: Reuse = "exact",
        apart: bool = False,
        steps: int | None = None,
        max_queue: int | None = None,
    ) -> None:
        """Takes no memory for keys and values before the first request.

        Args:
            model: what answers.
            slots: canvases that are denoised together at most.
            max_context: tokens of prompt and answer at most; None is the model's positions. See `positions`.
            kv_bytes: for all keys and values. None: most of what the device has left.
            prefix_bytes: of these, for earlier prompts; the rest is for requests that run. None: a quarter.
            reuse: "exact", "any" or "off"; see `prefix.py`.
            apart: compute each row alone, in the shapes of a batch of one. The answer is then the same in any
                company to the last bit of every number, but a batch is no faster than its rows one after another.
                Without it the numbers of a row may differ in their last bits between batch sizes, also of prompts
                that are read and of canvases that are committed together, and a canvas that the model is unsure of may
                become another text.
            steps: denoising steps between two looks at arrivals and cancellations, while no prompt is being read. None:
                one while somebody waits for a place, else as many as take 35 ms, and at least one. See `scheduler.py`.
            max_queue: requests that may wait beside those in slots; None is any number.

        Raises:
            RefusedError: not even a prompt of one token and one canvas fit; the text has the numbers.
        """
        device = model_device(model, slots, max_context, kv_bytes, prefix_bytes, reuse, apart)
        self._begin(device if jax.process_count() == 1 else Leader(device), steps, max_queue)

    @classmethod
    def over(cls, device: Device, *, steps: int | None = None, max_queue: int | None = None) -> Engine:
        """An engine over anything that behaves as a device."""
        engine = cls.__new__(cls)
        engine._begin(device, steps, max_queue)
        return engine

    def _begin(self, device: Device, steps: int | None, max_queue: int | None) -> None:
        self._device = device
        # What `generate_many` keeps open: enough that no slot waits for its next request, where there is a line.
        self._ahead = device.budget.slots * (2 if max_queue is None else 1)
        self._core = Core(device, steps=steps, max_queue=max_queue)
        self._listeners: dict[int, Listener] = {}
        self._changed = threading.Condition()  # guards the listeners and `_closing`; told of arrivals
        self._closing = False
        self._thread: threading.Thread | None = None
        self._end_warm_up: Callable[[], None] = lambda: None

    @property
    def positions(self) -> int:
        """Tokens of prompt and answer at most: what was asked for, or less where the memory holds no more."""
        return self._device.budget.positions

    @property
    def slots(self) -> int:
        """Canvases that are denoised together at most."""
        return self._device.budget.slots

    @property
    def error(self) -> BaseException | None:
        """Why the engine takes no more requests; None while it lives."""
        return self._core.error

    @property
    def waiting(self) -> int:
        """Requests in the line."""
        return self._core.waiting

    @property
    def running(self) -> int:
        """Requests being read or denoised."""
        return self._core.running

    @property
    def memory_share(self) -> float:
        """Of the memory for keys and values of running requests, how much they take: 0 to 1."""
        return self._core.memory_share

    @property
    def busy(self) -> bool:
        """Whether `step` has anything to do."""
        return self._core.busy

    def warm_up(self, progress: Callable[[str], None] = lambda line: None, *, everything: bool = True) -> None:
        """Compiles what requests would otherwise wait for; a line for every bucket. Before the first request.

        On a CPU what long prompts, images, `top_k` and `top_p` need is still being compiled when this returns, on a
        thread that `close` ends. `everything`: also what only requests with images, `top_k` or `top_p` need; without,
        the first of those wait.
        """
        assert isinstance(self._device, ModelDevice | Leader), "only a model has programs to compile"
        self._end_warm_up()  # one such thread is enough, and `close` knows of the last one alone
        self._end_warm_up = self._device.warm_up(progress, everything)

    def submit(self, request: Request) -> int:
        """See `Core.submit`."""
        return self._core.submit(request)

    def cancel(self, id: int) -> None:
        """Ends a request before the next unit of work; no more events."""
        self._core.cancel(id)
        with self._changed:
            self._listeners.pop(id, None)

    def step(self) -> Events:
        """One unit of work, and what happened: pairs of id and event. For engines without a thread.

        An interrupt (Ctrl-C) in the middle of it ends the engine: what it was about is not known any more.
        """
        if self._thread is not None:
            raise RuntimeError("this engine has a thread, which takes its steps")
        return self._core.step()

    def run(self) -> Iterator[tuple[int, Event]]:
        """Takes steps until every request is answered. For engines without a thread."""
        while self.busy:
            yield from self.step()

    def listen(self, request: Request, listener: Listener) -> int:
        """As `submit`, with events handed to `listener` on the engine's thread, which is started."""
        with self._changed:
            if self._closing:
                raise EngineDeadError("the engine is closed")
            id = self._core.submit(request)
            self._listeners[id] = listener
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="dgemma-engine", daemon=True)
                self._thread.start()
            self._changed.notify_all()
        return id

    async def stream(self, request: Request) -> AsyncIterator[Event]:
        """The events of one request; the last is `Finished` or `Failed`. Leaving the loop early cancels it.

        Raises:
            ValueError, QueueFullError, EngineDeadError: as `submit`.
        """
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[Event] = asyncio.Queue()

        def post(event: Event) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to read it
                loop.call_soon_threadsafe(events.put_nowait, event)

        id = self.listen(request, post)
        try:
            while True:
                event = await events.get()
                yield event
                if isinstance(event, Finished | Failed):
                    return
        finally:
            self.cancel(id)

    def generate_many(
        self, prompts: Iterable[Request | Sequence[int]], *, progress: bool = True, **settings: Any
    ) -> list[offline.Answer]:
        """Answers in the order of the prompts; see `offline.generate_many`. `settings` of prompts that are tokens.

        A prompt that is refused, being too long for one, has its error in its answer; the others are answered.
        """
        requests = [p if isinstance(p, Request) else Request(tokens=tuple(p), **settings) for p in prompts]
        return offline.generate_many(self, requests, self._ahead, progress)

    def close(self) -> None:
        """Fails what is open and ends the threads. More than once is no error."""
        self._end_warm_up()
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
        self._core.kill(RuntimeError("the engine was closed"))
        if isinstance(self._device, Leader):
            self._device.close()

    def _work(self) -> None:
        why: BaseException = RuntimeError("the engine was closed")
        try:
            while self._wait():
                self._hand_out(self._core.step())
        except BaseException as error:  # nobody may go on waiting for a thread that has ended
            logger.critical("the engine's thread has ended", exc_info=True)
            why = error
        self._core.kill(why)
        self._hand_out(self._core.step())

    def _wait(self) -> bool:
        """Until there is work; False when there will be none any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._core.busy or self._closing or self._core.error is not None)
            return not self._closing and self._core.error is None

    def _hand_out(self, events: Events) -> None:
        for id, event in events:
            with self._changed:
                last = isinstance(event, Finished | Failed)
                listener = self._listeners.pop(id, None) if last else self._listeners.get(id)
            if listener is None:
                continue
            try:
                listener(event)
            except BaseException:  # a listener's trouble is not the other requests'
                logger.exception("a listener failed")
