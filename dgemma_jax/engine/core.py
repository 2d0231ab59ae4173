"""The engine's heart: requests in, events out, one unit of work at a time."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable

from jax.errors import JaxRuntimeError

from dgemma_jax.engine.batch import Canvas
from dgemma_jax.engine.device import Device
from dgemma_jax.engine.events import Draft, EngineDeadError, Event, Failed, Prefilled, QueueFullError, Request
from dgemma_jax.engine.guide import Guide
from dgemma_jax.engine.plan import Plan
from dgemma_jax.engine.scheduler import Commit, Denoise, Read, Scheduler
from dgemma_jax.generate import CanvasCommitted, Finished, cut
from dgemma_jax.grammar import GrammarError
from dgemma_jax.processes import LostProcessError

logger = logging.getLogger(__name__)
Events = list[tuple[int, Event]]


@dataclasses.dataclass
class _Open:
    plan: Plan
    produced: list[int] = dataclasses.field(default_factory=list)
    canvases: int = 0
    canvas: Canvas | None = None
    """The latest of its canvas: under way, or done and waiting for its commit. None before the first step."""
    due: int = 0
    """The step of its canvas after which the next draft is due; 0 without drafts and while the prompt is read."""
    guide: Guide | None = None
    """Of a request with a grammar."""
    tried: int = 0
    """Steps of its canvas that led to what the grammar does not allow."""


class Core:
    """The engine without a thread of its own: `submit` and `cancel` on any thread, `step` on one.

    A request fails alone where its own prompt cannot be read, or where its canvas is no longer numbers. Any other error
    is a crash, also of the device while it reads a prompt: all open requests fail, and the engine takes no more.
    """

    def __init__(
        self,
        device: Device,
        *,
        steps: int | None = None,
        max_queue: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._device = device
        self._scheduler = Scheduler(device.budget.fits, steps, device.together)
        self._max_queue = max_queue
        self._clock = clock
        self._ids = itertools.count()
        self._open: dict[int, _Open] = {}
        self.memory_share = 0.0
        """Of the memory for keys and values of running requests, what is taken since the last step: 0 to 1."""
        self._events: Events = []
        self._lock = threading.Lock()  # guards the three below, which other threads write
        self._arrived: deque[tuple[int, Plan, float]] = deque()
        self._cancelled: deque[int] = deque()
        self._dead: BaseException | None = None

    @property
    def error(self) -> BaseException | None:
        """Why the engine takes no more requests; None while it lives."""
        return self._dead

    @property
    def waiting(self) -> int:
        """Requests in the line."""
        return self._scheduler.waiting + len(self._arrived)

    @property
    def running(self) -> int:
        """Requests being read or denoised."""
        return self._scheduler.running

    @property
    def busy(self) -> bool:
        """Whether `step` has anything to do."""
        return self._dead is None and (not self._scheduler.idle or bool(self._arrived))

    def submit(self, request: Request) -> int:
        """Puts a request in the line and returns its id.

        Raises:
            ValueError: as `dgemma_jax.stream`; RefusedError for one that can never fit, with the numbers.
            QueueFullError: as many wait as may.
            EngineDeadError: the engine has crashed or is closed.
        """
        self._check_alive()
        plan = self._device.plan(request)
        until = float("inf") if request.timeout is None else self._clock() + request.timeout
        with self._lock:
            self._check_alive()
            taken = self.waiting + self.running
            if self._max_queue is not None and taken >= self._device.budget.slots + self._max_queue:
                raise QueueFullError(f"{taken} requests are open already; this engine takes no more")
            id = next(self._ids)
            self._arrived.append((id, plan, until))
        return id

    def cancel(self, id: int) -> None:
        """Ends a request, before the next unit of work: no more events. Unknown and ended ones are no error."""
        with self._lock:
            self._cancelled.append(id)

    def step(self) -> Events:
        """One unit of work, and what happened."""
        if self._dead is None:
            try:
                self._step()
            except (KeyboardInterrupt, SystemExit) as error:
                self.kill(error)  # in the middle of anything: what went on would not be to be trusted
                raise  # they are for whoever takes the steps
            except BaseException as error:  # what a library in Rust raises when it panics is no Exception
                logger.exception("the engine crashed")
                self.kill(error)
        if self._dead is not None:
            self._fail_all()
        events, self._events = self._events, []
        return events

    def kill(self, error: BaseException) -> None:
        """Takes no more requests; the next `step`, or the one under way, fails those that are open. On any thread."""
        with self._lock:
            self._dead = self._dead or error

    def _fail_all(self) -> None:
        with self._lock:
            ids = [id for id in (*self._open, *(id for id, *_ in self._arrived)) if id not in self._cancelled]
            self._arrived.clear()
        for id in ids:
            self._tell(id, Failed(self._death()))
        for id in self._open:
            self._scheduler.remove(id)
        self._open.clear()
        self.memory_share = 0.0

    def _step(self) -> None:
        self._take_in()
        self._work()
        lengths, budget = self._scheduler.lengths, self._device.budget
        self.memory_share = budget.needs(lengths) / budget.total if lengths else 0.0

    def _work(self) -> None:
        match self._scheduler.next():
            case Read((id,)):
                self._read(id)
            case Read(ids):
                self._read_together(ids)
            case Commit(ids):
                self._commit(ids)
            case Denoise(most):
                self._denoise(most)

    def _tell(self, id: int, event: Event) -> None:
        self._events.append((id, event))

    def _take_in(self) -> None:
        """What other threads and the clock brought: arrivals, cancellations, requests that are too late."""
        with self._lock:
            for id, plan, until in self._arrived:
                self._open[id] = _Open(plan)
                self._scheduler.add(id, plan.longest, until, plan.short)
            cancelled = list(self._cancelled)
            self._arrived.clear()
            self._cancelled.clear()
        for id in cancelled:
            self._end(id)
        for id in self._scheduler.expired(self._clock()):
            self._fail(id, TimeoutError("the request took longer than it was given"))

    def _read(self, id: int) -> None:
        plan = self._open[id].plan
        try:
            prefilled: Prefilled | None = self._device.read(id, plan)
        except Exception as error:
            if self._is_crash(error):
                raise
            logger.warning("a prompt could not be read", exc_info=error)
            self._fail(id, error)
            return
        if prefilled is not None:
            self._start(id, prefilled)

    def _read_together(self, ids: tuple[int, ...]) -> None:
        try:
            prefilled = self._device.read_together({id: self._open[id].plan for id in ids})
        except Exception as error:  # of one of them, perhaps: which one shows when each is read alone
            if self._is_crash(error):
                raise
            logger.warning("prompts could not be read together", exc_info=error)
            for id in ids:
                self._device.leave(id)
            self._scheduler.separate(ids)
            return
        for id in ids:
            self._start(id, prefilled[id])

    def _is_crash(self, error: Exception) -> bool:
        """Whether what went wrong while a prompt was read is not the prompt's fault: nothing can be read any more.

        Memory that one prompt found too small may be enough for the next, unless rows of others were lost with it.
        """
        if isinstance(error, JaxRuntimeError) and not str(error).startswith("RESOURCE_EXHAUSTED"):
            return True
        return isinstance(error, LostProcessError) or not self._device.intact

    def _start(self, id: int, prefilled: Prefilled) -> None:
        self._scheduler.read(id)
        one = self._open[id]
        one.due = one.plan.request.draft_every
        if one.plan.request.grammar is not None:
            one.guide = Guide(one.plan.request.grammar, one.plan.canvas_length, one.plan.generation.eos_token_ids)
        self._tell(id, prefilled)
        self._begin_canvas(id)

    def _commit(self, ids: tuple[int, ...]) -> None:
        canvases = {id: self._open[id].canvas for id in ids}
        self._device.commit({id: canvas.tokens for id, canvas in canvases.items() if canvas is not None})
        for id in ids:
            self._begin_canvas(id)

    def _begin_canvas(self, id: int) -> None:
        one = self._open[id]
        one.tried = 0
        if one.guide is None:
            return
        try:
            first = one.guide.begin()
        except GrammarError as error:
            self._fail(id, error)
            return
        if first:
            self._device.restart(id, first)

    def _denoise(self, most: int) -> None:
        dues = [one.due - self._step_of(one) for one in self._open.values() if one.due]
        start = self._clock()
        canvases = self._device.denoise(min([most, *dues]))
        steps = max(canvas.step - self._step_of(self._open[canvas.id]) for canvas in canvases)
        self._scheduler.took(steps, self._clock() - start)
        for canvas in canvases:
            one = self._open[canvas.id]
            one.canvas = canvas
            if not canvas.finite:
                self._fail(canvas.id, ArithmeticError("the model's numbers are no longer finite"))
            elif canvas.done:
                self._judge(one, canvas)
            elif one.due and canvas.step >= one.due:
                one.due += one.plan.request.draft_every
                self._tell(canvas.id, Draft(tuple(canvas.tokens.tolist()), canvas.step))

    def _step_of(self, one: _Open) -> int:
        return 0 if one.canvas is None or one.canvas.done else one.canvas.step

    def _judge(self, one: _Open, canvas: Canvas) -> None:
        """Lets a canvas that is done pass, or begins it again where a grammar wants it otherwise."""
        generation = one.plan.generation
        room = generation.max_new_tokens - len(one.produced)
        if one.guide is None:
            self._finish_canvas(one, canvas, cut(canvas.tokens, room, generation.eos_token_ids))
            return
        try:
            verdict = one.guide.judge(canvas.tokens, room, functools.partial(self._device.choose, canvas.id))
        except GrammarError as error:
            self._fail(canvas.id, error)
            return
        if verdict.whole:
            canvas.tokens[: len(verdict.tokens)] = verdict.tokens
            one.canvas = canvas = canvas._replace(step=one.tried + canvas.step)
            self._finish_canvas(one, canvas, verdict.tokens)
        else:
            one.tried += canvas.step
            one.due = one.plan.request.draft_every
            self._device.restart(canvas.id, verdict.tokens)

    def _finish_canvas(self, one: _Open, canvas: Canvas, new: list[int]) -> None:
        generation, options = one.plan.generation, one.plan.request.options
        scores = None
        if options.logprobs is not None:
            scores = self._device.logprobs(canvas.id, canvas.tokens, len(new), options.logprobs)
        self._tell(canvas.id, CanvasCommitted(tuple(new), canvas.step, scores))
        one.produced += new
        one.canvases += 1
        one.due = one.plan.request.draft_every
        ended = one.produced[-1] in generation.eos_token_ids
        if not ended and one.canvases < one.plan.canvases:
            self._scheduler.done(canvas.id)
        else:
            self._end(canvas.id)
            self._tell(canvas.id, Finished("stop" if ended else "length"))

    def _end(self, id: int) -> None:
        if id in self._open:
            self._device.leave(id)  # first: should it crash, the request is still open and is told
            self._scheduler.remove(id)
            del self._open[id]

    def _fail(self, id: int, error: Exception) -> None:
        self._end(id)
        self._tell(id, Failed(error))

    def _check_alive(self) -> None:
        if self._dead is not None:
            raise self._death()

    def _death(self) -> EngineDeadError:
        dead = EngineDeadError(f"the engine has stopped: {self._dead}")
        dead.__cause__ = self._dead
        return dead
