"""The requests that are being denoised: one row of one cache for each, on the device.

The batch is as small as its requests allow: 1, 2, 4, ... rows, and of few capacities, for which programs are
compiled. It is rebuilt, layer by layer, when it becomes another of these, so never more than one layer is there twice.
Else a row that its request has left waits for the next one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dgemma_jax import cache as kv
from dgemma_jax.engine import programs
from dgemma_jax.engine.memory import Budget
from dgemma_jax.engine.plan import Plan
from dgemma_jax.pretrained import Model
from dgemma_jax.sampling.denoise import State
from dgemma_jax.sampling.logprobs import TokenLogprob, of_row
from dgemma_jax.sampling.options import SamplingOptions
from dgemma_jax.sampling.pins import FREE
from dgemma_jax.sampling.settings import Settings
from dgemma_jax.sampling.truncation import Truncation
from dgemma_jax.sharding import fetch


def commit_together(done: int, rows: int, platform: str) -> bool:
    """Whether one pass over a batch of so many rows is cheaper than one over each row that is done.

    A row in company costs a CPU little more than half of one alone (the demo: 9.6 ms for one row, 44.5 for eight; with
    JAX 0.12 5.2 and 22.7). Elsewhere one row takes what reading the weights takes, and about four rows take no longer.
    """
    most = 1.8 if platform == "cpu" else 4  # rows that a pass reads in the time of one alone
    return done > 1 and done * most >= rows


class Canvas(NamedTuple):
    """A row after some steps: its latest prediction, the steps taken, whether it is done and still numbers."""

    id: int
    tokens: np.ndarray
    step: int
    done: bool
    finite: bool


@dataclasses.dataclass(eq=False)
class _Row:
    id: int
    plan: Plan
    length: int
    """Tokens in the cache."""
    settings: Settings
    pins_L: np.ndarray
    """Tokens that its canvas is held to."""
    canvas: int = 0
    fresh: bool = True


class Batch:
    """Methods are called by the engine's thread only."""

    def __init__(self, model: Model, budget: Budget, apart: bool) -> None:
        self._model = model
        self._budget = budget
        self._apart = apart
        self._rows: list[_Row | None] = []  # whose each row of the cache is; None: nobody's
        self._cache: kv.Cache | None = None
        self._state: State | None = None
        self._changed = True  # who is in the batch
        self._begun = True  # a canvas has begun, or its first step is over
        self._requests: tuple[Settings, jax.Array, jax.Array]
        self._inputs: programs.Rows

    @property
    def intact(self) -> bool:
        """Whether caches and states of all rows are still there: those that are moved are given up one by one."""
        return not any(x.is_deleted() for x in jax.tree.leaves((self._cache, self._state)))

    def join(self, id: int, plan: Plan, cache: kv.Cache) -> None:
        """Adds a request whose prompt is in a cache of one row, which is copied."""
        # Hidden states are always kept: they cost little, and one program serves those who ask for log-probabilities.
        settings = Settings.of(plan.generation, 1, SamplingOptions(logprobs=0))
        self._shape(_Row(id, plan, plan.length, jax.tree.map(np.asarray, settings), self._pins(())))
        self.write(id, cache)

    def leave(self, id: int) -> None:
        """Forgets a request, if it is there."""
        staying = [None if row is None or row.id == id else row for row in self._rows]
        if staying == self._rows:
            return
        self._rows, self._changed = staying, True
        if any(staying):
            self._shape()
        else:
            self._rows, self._cache, self._state = [], None, None

    def denoise(self, most: int) -> list[Canvas]:
        """Takes at most so many steps, fewer when a canvas is done."""
        self._shape()
        assert self._cache is not None and self._state is not None
        denoised = programs.denoise(
            *self._model.flat, self._cache, self._state, self._device_rows(), np.int32(most), self._apart
        )
        self._state = denoised.state
        done_B, step_B, finite_B, argmax_BL = fetch((*denoised[1:], denoised.state.argmax_BL))
        rows = [(i, row) for i, row in enumerate(self._rows) if row is not None]
        if any(row.fresh for _, row in rows):
            self._begun = True
            for _, row in rows:
                row.fresh = False
        return [
            Canvas(row.id, np.array(argmax_BL[i]), int(step_B[i]), bool(done_B[i]), bool(finite_B[i]))
            for i, row in rows
        ]

    def logprobs(self, id: int, canvas_L: np.ndarray, tokens: int, likeliest: int) -> tuple[TokenLogprob, ...]:
        """Of a row's canvas by its latest prediction, for its first tokens."""
        assert self._state is not None
        canvas_BL = canvas_L[None].astype(np.int32)
        scored = programs.score(*self._model.flat, self._state, np.int32(self._index(id)), canvas_BL)
        return of_row(fetch(scored), 0, tokens, likeliest)

    def choose(self, id: int, position: int, allowed_V: np.ndarray) -> int:
        """The likeliest of the allowed tokens at a position of a row's canvas, by its latest prediction."""
        assert self._state is not None
        place = np.int32(self._index(id)), np.int32(position)
        return int(fetch(programs.choose(*self._model.flat, self._state, *place, allowed_V)))

    def restart(self, id: int, pinned: Sequence[int]) -> None:
        """Begins a row's canvas again, whose first tokens are these."""
        row = self._row(id)
        row.pins_L = self._pins(pinned)
        row.fresh = self._begun = True

    def _pins(self, first: Sequence[int]) -> np.ndarray:
        pins_L = np.full(self._model.config.canvas_length, FREE, np.int32)
        pins_L[: len(first)] = first
        return pins_L

    def commit(self, canvases: dict[int, np.ndarray]) -> None:
        """Reads finished canvases into their rows' caches, causally, and starts the next ones."""
        self._shape()
        if not self._apart and commit_together(len(canvases), len(self._rows), jax.default_backend()):
            self.read_at_once(canvases)
        else:
            for id, canvas_L in canvases.items():
                self._read_alone(id, canvas_L)
        for id, canvas_L in canvases.items():
            row = self._row(id)
            row.length += len(canvas_L)
            row.canvas += 1
            self.restart(id, ())

    def read_at_once(self, canvases: dict[int, np.ndarray]) -> None:
        """One pass over the whole batch, in place: of rows that are not named nothing counts."""
        assert self._cache is not None
        # Rows that do not count read a canvas, too: one token everywhere would crowd its experts, and some backends
        # make as much room for each expert as for the most crowded one.
        tokens_BL = np.stack([next(iter(canvases.values()))] * len(self._cache.length_B))
        count_B = np.zeros(len(tokens_BL), np.int32)
        for id, canvas_L in canvases.items():
            tokens_BL[self._index(id)], count_B[self._index(id)] = canvas_L, len(canvas_L)
        self._cache = self._model.extend(self._cache, tokens_BL, None, count_B)

    def _read_alone(self, id: int, canvas_L: np.ndarray) -> None:
        """In the shapes of a batch of one, with the program that reads prompts; the copies take 2 % of the pass."""
        self.write(id, self._model.extend(self.copy(id), canvas_L[None], None))

    def copy(self, id: int) -> kv.Cache:
        """The row's cache by itself."""
        assert self._cache is not None
        return programs.take(self._cache, np.int32(self._index(id)), self._model.mesh)

    def _index(self, id: int) -> int:
        return next(i for i, row in enumerate(self._rows) if row is not None and row.id == id)

    def _row(self, id: int) -> _Row:
        row = self._rows[self._index(id)]
        assert row is not None
        return row

    def write(self, id: int, cache: kv.Cache) -> None:
        """Puts a cache of one row, copied, in the place of a row's own."""
        assert self._cache is not None
        if cache.capacity != self._cache.capacity:
            cache = self._arranged(cache, [0], self._cache.capacity)
        self._cache = programs.put(self._cache, cache, np.int32(self._index(id)), self._model.mesh)

    def _shape(self, joining: _Row | None = None) -> None:
        """Rebuilds the batch where it is not the smallest one with room for a further canvas in every row."""
        budget, places = self._budget, [i for i, row in enumerate(self._rows) if row is not None]
        rows = [row for row in (*self._rows, joining) if row is not None]
        count = budget.rows(len(rows))
        capacity = budget.capacity(max(row.length for row in rows) + self._model.config.canvas_length)
        if self._cache is None:
            self._cache, self._rows = self._model.empty_cache(count, capacity), [None] * count
        elif (len(self._rows), self._cache.capacity) != (count, capacity):
            padded = (places + [0] * count)[:count]
            self._cache = self._arranged(self._cache, padded, capacity, consume=True)
            if self._state is not None:
                self._state = programs.pick(self._state, np.asarray(padded, np.int32), self._model.mesh)
            self._rows = ([self._rows[i] for i in places] + [None] * count)[:count]
            self._changed = True
        if joining is not None:
            self._rows[self._rows.index(None)] = joining
            self._changed = True
        if self._state is None:
            self._state = programs.blank(*self._model.flat, self._device_rows())

    def _arranged(self, cache: kv.Cache, order: list[int], capacity: int, *, consume: bool = False) -> kv.Cache:
        window, mesh = self._model.config.text.sliding_window, self._model.mesh
        return programs.arrange(cache, order, capacity, window, consume=consume, mesh=mesh)

    def _device_rows(self) -> programs.Rows:
        """What the programs read of the rows. Only what has changed is made anew: all of it takes a millisecond."""
        some = next(row for row in self._rows if row is not None)
        padded = [row or some for row in self._rows]  # what stands in a row of nobody is not looked at
        if self._changed:
            self._requests = self._of_requests(padded)
        if self._changed or self._begun:
            settings, seed_B2, running_B = self._requests
            self._inputs = programs.Rows(
                settings=dataclasses.replace(settings, pin_BL=jnp.asarray(np.stack([row.pins_L for row in padded]))),
                seed_B2=seed_B2,
                canvas_B=jnp.asarray(np.asarray([row.canvas for row in padded], np.int32)),
                fresh_B=jnp.asarray(np.asarray([row.fresh for row in padded])),
                running_B=running_B,
            )
        self._changed = self._begun = False
        return self._inputs

    def _of_requests(self, padded: Sequence[_Row]) -> tuple[Settings, jax.Array, jax.Array]:
        """What stays as it is while the same requests run: settings, seeds, and which rows are theirs."""
        settings = jax.tree.map(lambda *values: jnp.asarray(np.concatenate(values)), *(row.settings for row in padded))
        truncation = Truncation.of([row.plan.request.options for row in padded])
        return (
            dataclasses.replace(settings, truncation=truncation),
            jnp.asarray(np.concatenate([row.plan.seed_12 for row in padded])),
            jnp.asarray(np.asarray([row is not None for row in self._rows])),
        )
