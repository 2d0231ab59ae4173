"""What the engine does next. No JAX, no clock of its own: every decision can be computed by hand.

    waiting --admit--> reading (one at a time, or some short ones) --> running --> gone
                                                                       ^    |
                                                                       +----+  a canvas is done: commit it, go on

The rules, in this order:

1. A canvas that is done is committed at once: it never waits for slower ones.
2. A prompt is read pass by pass, and between two passes the running canvases are denoised: so a long prompt delays
   them by at most one pass (`Model.chunk` tokens, or the vision tower) each time. Short prompts next to each other in
   the line are read in one pass: else no more of them could start at a step than one.
3. Else the running canvases are denoised: `steps` at a time, one at a time while a prompt is being read.

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
    """One canvas into the cache."""

    id: int


@dataclasses.dataclass(frozen=True)
class Denoise:
    """At most so many steps of all running canvases."""

    most: int


Work = Read | Commit | Denoise


@dataclasses.dataclass
class _Waiting:
    longest: int
    until: float
    short: bool


class Scheduler:
    """`fits` says whether requests that grow to these lengths can run together, while so many are read in one pass.

    together: how many short prompts may be read in one pass.
    """

    def __init__(self, fits: Callable[[Sequence[int], int], bool], steps: int, together: int = 1) -> None:
        self._fits = fits
        self._steps = steps
        self._together = together
        self._open: dict[int, _Waiting] = {}
        self._line: deque[int] = deque()
        self._reading: list[int] = []
        self._running: list[int] = []
        self._done: deque[int] = deque()
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
            return Commit(self._done.popleft())
        if self._reading and not (self._running and self._read_last):
            self._read_last = True
            return Read(tuple(self._reading))
        self._read_last = False
        if self._running:
            return Denoise(1 if self._reading else self._steps)
        return None

    def read(self, id: int) -> None:
        """The prompt is read: the request runs."""
        self._reading.remove(id)
        self._running.append(id)

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
