"""What the engine does next. No JAX, no clock of its own: every decision can be computed by hand.

    waiting --admit--> reading (one at a time) --> running --> gone
                                                    ^    |
                                                    +----+  a canvas is done: commit it, go on

The rules, in this order:

1. A canvas that is done is committed at once: it never waits for slower ones.
2. A prompt is read pass by pass, and between two passes the running canvases are denoised: so a long prompt delays
   them by at most one pass (`Model.chunk` tokens, or the vision tower) each time.
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
    """One pass over a prompt."""

    id: int


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


class Scheduler:
    """`fits` says whether requests that grow to these lengths can run together."""

    def __init__(self, fits: Callable[[Sequence[int]], bool], steps: int) -> None:
        self._fits = fits
        self._steps = steps
        self._open: dict[int, _Waiting] = {}
        self._line: deque[int] = deque()
        self._reading: int | None = None
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
        return len(self._running) + (self._reading is not None)

    @property
    def lengths(self) -> list[int]:
        """What the requests that are being read or denoised grow to."""
        admitted = self._running if self._reading is None else [*self._running, self._reading]
        return [self._open[id].longest for id in admitted]

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._open

    def add(self, id: int, longest: int, until: float = float("inf")) -> None:
        """Puts a request at the end of the line; `until` is when it is too late for it."""
        self._open[id] = _Waiting(longest, until)
        self._line.append(id)

    def next(self) -> Work | None:
        """The next work; None when there is none."""
        self._admit()
        if self._done:
            return Commit(self._done.popleft())
        if self._reading is not None and not (self._running and self._read_last):
            self._read_last = True
            return Read(self._reading)
        self._read_last = False
        if self._running:
            return Denoise(1 if self._reading is not None else self._steps)
        return None

    def read(self, id: int) -> None:
        """The prompt is read: the request runs."""
        assert id == self._reading
        self._reading = None
        self._running.append(id)

    def done(self, id: int) -> None:
        """A canvas is done, and another is to follow."""
        self._done.append(id)

    def remove(self, id: int) -> None:
        """The request is over, wherever it is."""
        del self._open[id]
        if self._reading == id:
            self._reading = None
        for place in (self._line, self._running, self._done):
            if id in place:
                place.remove(id)

    def expired(self, now: float) -> list[int]:
        """Requests whose time is over."""
        return [id for id, request in self._open.items() if request.until <= now]

    def _admit(self) -> None:
        if self._reading is not None or not self._line:
            return
        together = [self._open[id].longest for id in (*self._running, self._line[0])]
        if self._fits(together):
            self._reading = self._line.popleft()
