"""What the engine needs from a device, and the real one. Tests bring one whose answers can be computed by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from dgemma_jax.buckets import short_prompt
from dgemma_jax.engine.batch import Batch, Canvas
from dgemma_jax.engine.events import Prefilled, Request
from dgemma_jax.engine.memory import READ_TOGETHER, Budget
from dgemma_jax.engine.plan import Plan, plan
from dgemma_jax.engine.prefix import Entry, PrefixStore
from dgemma_jax.engine.reading import Reading, read_together
from dgemma_jax.pretrained import Model
from dgemma_jax.sampling.logprobs import TokenLogprob


class Device(Protocol):
    """`plan` may be called on any thread, all else on the engine's. A request is named by its id."""

    budget: Budget
    together: int
    """Short prompts (`Plan.short`) that are read in one pass at most; 1: each alone."""

    @property
    def intact(self) -> bool:
        """Whether all rows are still there: an error may come while they are being moved."""

    def plan(self, request: Request) -> Plan:
        """Checks a request. Raises ValueError."""

    def read(self, id: int, plan: Plan) -> Prefilled | None:
        """One unit of work on a prompt; the last one puts the request into the batch and returns the count of tokens.

        Prompts are read one after another. An error concerns this request alone, while the others are `intact` and it
        is not the device that failed.
        """

    def read_together(self, plans: dict[int, Plan]) -> dict[int, Prefilled]:
        """Several short prompts in one pass, which puts them all into the batch. After an error, `leave` each."""

    def denoise(self, most: int) -> list[Canvas]:
        """Steps of all requests in the batch, at most so many, until one of their canvases is done."""

    def logprobs(self, id: int, canvas_L: np.ndarray, tokens: int, likeliest: int) -> tuple[TokenLogprob, ...]:
        """Of the first tokens of a canvas that is done."""

    def choose(self, id: int, position: int, allowed_V: np.ndarray) -> int:
        """The likeliest of the allowed tokens at a position of a canvas that is done."""

    def restart(self, id: int, pinned: Sequence[int]) -> None:
        """Begins a canvas again, whose first tokens are these; they stay."""

    def commit(self, canvases: dict[int, np.ndarray]) -> None:
        """Reads the canvases of requests that are done with them, and starts their next ones."""

    def leave(self, id: int) -> None:
        """Frees what a request holds, whether it is being read or in the batch."""


class ModelDevice:
    """Implements `Device` over a model."""

    def __init__(self, model: Model, budget: Budget, store: PrefixStore, apart: bool) -> None:
        self.model = model
        self.budget = budget
        self.store = store
        self.apart = apart
        self.together = min(READ_TOGETHER, budget.slots)
        if apart or short_prompt(model.config.canvas_length) < 1:
            self.together = 1
        self._batch = Batch(model, budget, apart)
        self._reading: tuple[int, Reading] | None = None
        self._said: dict[int, list[np.ndarray]] = {}  # keys of the prompt and canvases that each row's cache holds

    @property
    def intact(self) -> bool:
        """As `Device.intact`."""
        return self._batch.intact

    def plan(self, request: Request) -> Plan:
        """As `Device.plan`. Raises RefusedError for a request that can never fit."""
        made = plan(request, self.model.config, self.model.generation, self.budget.positions, self.model.chunk)
        self.budget.check(made.longest)
        return made

    def read(self, id: int, plan: Plan) -> Prefilled | None:
        """As `Device.read`."""
        if self._reading is None:
            self._reading = (id, Reading(self.model, plan, self.store))
        reading = self._reading[1]
        reading.step()
        if not reading.complete:
            return None
        self._reading = None
        return self._join(id, reading, keep=True)

    def read_together(self, plans: dict[int, Plan]) -> dict[int, Prefilled]:
        """As `Device.read_together`."""
        readings = {id: Reading(self.model, plan, self.store) for id, plan in plans.items()}
        read_together(self.model, list(readings.values()))
        # They were rounded as a batch, as no prompt is that comes alone: "exact" does not reuse them.
        keep = self.store.reuse == "any"
        return {id: self._join(id, reading, keep) for id, reading in readings.items()}

    def _join(self, id: int, reading: Reading, keep: bool) -> Prefilled:
        self._batch.join(id, reading.plan, reading.cache)
        if keep:
            reading.keep()
        self._said[id] = [reading.plan.keys_T]
        return Prefilled(reading.plan.length, reading.cached)

    def denoise(self, most: int) -> list[Canvas]:
        """As `Device.denoise`."""
        return self._batch.denoise(most)

    def logprobs(self, id: int, canvas_L: np.ndarray, tokens: int, likeliest: int) -> tuple[TokenLogprob, ...]:
        """As `Device.logprobs`."""
        return self._batch.logprobs(id, canvas_L, tokens, likeliest)

    def choose(self, id: int, position: int, allowed_V: np.ndarray) -> int:
        """As `Device.choose`."""
        return self._batch.choose(id, position, allowed_V)

    def restart(self, id: int, pinned: Sequence[int]) -> None:
        """As `Device.restart`."""
        self._batch.restart(id, pinned)

    def commit(self, canvases: dict[int, np.ndarray]) -> None:
        """As `Device.commit`."""
        self._batch.commit(canvases)
        for id, canvas_L in canvases.items():
            self._said[id].append(canvas_L.astype(np.int64))

    def warm_up(self, progress: Callable[[str], None], everything: bool) -> Callable[[], None]:
        """Compiles what requests would otherwise wait for; see `warm.warm_up`."""
        from dgemma_jax.engine import warm  # which knows this class

        return warm.warm_up(self, progress, everything)

    def leave(self, id: int) -> None:
        """As `Device.leave`. What a conversation's next prompt may begin with is kept, where that may be reused."""
        if self._reading is not None and self._reading[0] == id:
            self._reading = None
        said = self._said.pop(id, [])
        if len(said) > 1 and self.store.reuse == "any":
            self.store.put(Entry(self._batch.copy(id), np.concatenate(said), ()))
        self._batch.leave(id)
