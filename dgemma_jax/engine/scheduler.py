"""What the engine does next, and for how long. No JAX, no clock of its own: every decision can be computed by hand.

    waiting --admit--> reading (one at a time, or some short ones) --> running --> gone
                                                                       ^    |
                                                                       +----+  a canvas is done: commit it, go on

The rules, in this order:

1. Canvases that are done are committed at once, all together: none waits for slower ones, and those that run wait for
   what one pass over their whole batch takes, or less (with rows apart: for a pass over each that is done).
2. A prompt is read pass by pass, and between two passes the running canvases are denoised: so a long prompt delays
   them by at most one pass (`Model.chunk` tokens, or the vision tower) each time. Short prompts next to each other in
   the line are read in one pass: else no more of them could start at a step than one. Between two calls for steps
   there are at most one such pass and one commit.
3. Else the running canvases are denoised, without a word from the host until one is done, a draft is due, or
   `CALL_SECONDS` are over: that, or one step where it is longer, is what a cancellation, a timeout or an arrival waits
   for. While a prompt is being read or somebody waits for a place it is one step at a time: a place that a cancellation
   frees is taken before the next step. `steps` forces a number; then it is one only while a prompt is being read.

First come, first served: the first of the line is admitted as soon as it fits beside those that run, and nobody
overtakes it.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Sequence


@dataclasses.dataclass(frozen=True)
class Read:
    """One pass: over a part of one prompt, or over several short ones as a whole."""

    ids: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Commit:
    """All canvases that are done into the cache."""

    ids: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Denoise:
    """At most so many steps of all running canvases."""

    most: int


Work = Read | Commit | Denoise

CALL_SECONDS = 0.035
"""What a call for several steps may take: two steps of the 26B on one GPU, of which each should take 17 ms. Every call
costs the host a millisecond or two, in which the device does nothing; that a cancellation waits for 35 nobody sees."""
SHORTEST_STEP = 1e-3
"""No step is taken for shorter, whatever a coarse clock says: so a call has at most 35."""


class Pace:
    """How many steps a call may take: as many as take `CALL_SECONDS` at the pace of the call before, and at least one.

    On a CPU that is mostly one, as steps are as long by themselves.
    """

    def __init__(self) -> None:
        self._seconds: float | None = None  # of a step

    @property
    def steps(self) -> int:
        """One, too, where nothing was measured."""
        return 1 if self._seconds is None else max(1, int(CALL_SECONDS / max(self._seconds, SHORTEST_STEP)))

    def took(self, steps: int, seconds: float) -> None:
        """What the last call took, waiting for its results included."""
        self._seconds = seconds / steps if steps else None

    def forget(self) -> None:
        """Steps will be slower now."""
        self._seconds = None


@dataclasses.dataclass
class _Waiting:
    longest: int
    until: float
    short: bool


class Scheduler:
    """`fits` says whether requests that grow to these lengths can run together, while so many are read in one pass.

    steps: of one call, where no prompt is being read; None: as many as the rules above allow.
    together: how many short prompts may be read in one pass.
    """

    def __init__(self, fits: Callable[[Sequence[int], int], bool], steps: int | None, together: int = 1) -> None:
        self._fits = fits
        self._steps = steps
        self._pace = Pace()
        self._together = together
        self._open: dict[int, _Waiting] = {}
        self._line: deque[int] = deque()
        self._reading: list[int] = []
        self._running: list[int] = []
        self._done: list[int] = []
        self._read_last = False

    @property
    def waiting(self) -> int:
        """Requests that are not admitted yet."""
        return len(self._line)

    @property
    def running(self) -> int:
        """Requests that are being read or denoised."""
        return len(self._running) + len(self._reading)

    @property
    def lengths(self) -> list[int]:
        """What the requests that are being read or denoised grow to."""
        return [self._open[id].longest for id in (*self._running, *self._reading)]

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._open

    def add(self, id: int, longest: int, until: float = float("inf"), short: bool = False) -> None:
        """Puts a request at the end of the line; `until` is when it is too late for it."""
        self._open[id] = _Waiting(longest, until, short)
        self._line.append(id)

    def next(self) -> Work | None:
        """The next work; None when there is none."""
        self._admit()
        if self._done:
            done, self._done = self._done, []
            return Commit(tuple(done))
        if self._reading and not (self._running and self._read_last):
            self._read_last = True
            return Read(tuple(self._reading))
        self._read_last = False
        if self._running:
            return Denoise(self._most_steps())
        return None

    def _most_steps(self) -> int:
        if self._reading:
            return 1
        if self._steps is not None:
            return self._steps
        return 1 if self._line else self._pace.steps

    def took(self, steps: int, seconds: float) -> None:
        """The last call took so many steps, and so long."""
        self._pace.took(steps, seconds)

    def read(self, id: int) -> None:
        """The prompt is read: the request runs."""
        self._reading.remove(id)
        self._running.append(id)
        self._pace.forget()  # more rows take longer

    def separate(self, ids: Sequence[int]) -> None:
        """Prompts that were to be read together are to be read one after another, before all that wait."""
        for id in reversed(ids):
            self._reading.remove(id)
            self._open[id].short = False
            self._line.appendleft(id)

    def done(self, id: int) -> None:
        """A canvas is done, and another is to follow."""
        self._done.append(id)

    def remove(self, id: int) -> None:
        """The request is over, wherever it is."""
        del self._open[id]
        for place in (self._line, self._reading, self._running, self._done):
            if id in place:
                place.remove(id)

    def expired(self, now: float) -> list[int]:
        """Requests whose time is over."""
        return [id for id, request in self._open.items() if request.until <= now]

    def _admit(self) -> None:
        """The first of the line, and where it is short the short ones behind it."""
        while self._line and self._joins(self._line[0]):
            together = [*self.lengths, self._open[self._line[0]].longest]
            if not self._fits(together, len(self._reading) + 1):
                return
            self._reading.append(self._line.popleft())

    def _joins(self, id: int) -> bool:
        """Whether a prompt may be read beside those that are."""
        if not self._reading:
            return True
        return len(self._reading) < self._together and all(self._open[one].short for one in (*self._reading, id))
