"""Rows made ahead of their use by other processes: one processor core cannot make them as fast as a GPU learns."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable
from multiprocessing.pool import AsyncResult
from types import TracebackType

import jax

from dgemma_jax.training.rows import Row

CHUNK = 128
"""Rows made in one go."""
CHUNKS_AHEAD = 4
"""Chunks of each process that are made or wait."""


class RowsAhead:
    """Row number `index`, as `row_at` makes it; numbers from `first` on, asked for in turn, are made ahead.

    `row_at` must be picklable, and the same for the same number. Leaving the context ends the processes.
    """

    def __init__(self, row_at: Callable[[int], Row], first: int, processes: int) -> None:
        self._row_at, self._first, self._next = row_at, first, first
        self._limit = processes * CHUNKS_AHEAD
        self._chunks: deque[AsyncResult[list[Row]]] = deque()
        self._rows: list[Row] = []
        # Not forked: the parent's threads hold locks that a copy of it would never see opened.
        self._pool = multiprocessing.get_context("spawn").Pool(processes, _keep_off_device)

    def __call__(self, index: int) -> Row:
        """The row. Numbers before `first` are made here."""
        if index < self._first:
            return self._row_at(index)
        while len(self._chunks) < self._limit:
            self._chunks.append(self._pool.apply_async(_make, (self._row_at, self._next)))
            self._next += CHUNK
        offset = (index - self._first) % CHUNK
        if offset == 0:
            self._rows = self._chunks.popleft().get()
        return self._rows[offset]

    def __enter__(self) -> RowsAhead:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.terminate()
        self._pool.join()


def _keep_off_device() -> None:
    """The device is the training process's alone."""
    jax.config.update("jax_platforms", "cpu")


def _make(row_at: Callable[[int], Row], first: int) -> list[Row]:
    return [row_at(index) for index in range(first, first + CHUNK)]
