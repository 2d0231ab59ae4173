"""One prompt on its way into a cache of its own, pass by pass, beside the batch."""

from __future__ import annotations

import dataclasses
import itertools

import jax.numpy as jnp
import numpy as np

from dgemma_jax.buckets import chunks
from dgemma_jax.engine import programs
from dgemma_jax.engine.plan import Plan
from dgemma_jax.engine.prefix import Entry, PrefixStore
from dgemma_jax.pretrained import Model


class Reading:
    """`cached` tokens come from an earlier prompt; `step` until `complete`, then `cache` holds the prompt."""

    def __init__(self, model: Model, plan: Plan, store: PrefixStore) -> None:
        self._model, self._plan, self._store = model, plan, store
        self._soft_1TD: np.ndarray | None = None
        text, capacity = model.config.text, model.capacity(plan.length + model.config.canvas_length)
        found = store.find(plan.keys_T, plan.ends, plan.images is not None)
        self.cached = 0 if found is None else found.length
        if found is None:
            self.cache = model.empty_cache(1, capacity)
        else:  # a copy: an entry is never written
            self.cache = dataclasses.replace(
                programs.arrange(found.entry.cache, [0], capacity, text.sliding_window),
                length_B=jnp.full(1, found.length, jnp.int32),
            )
        self._spans = _spans(plan, self.cached, model.chunk)
        self._at = 0
        self._see = plan.images is not None and bool(plan.is_soft_1T[:, self.cached :].any())

    @property
    def complete(self) -> bool:
        """Whether the whole prompt is in the cache."""
        return not self._see and self._at == len(self._spans)

    def step(self) -> None:
        """One unit of work: the vision tower over all images, or one pass over a chunk of the prompt."""
        if self._see:
            assert self._plan.images is not None
            self._soft_1TD = self._model.soft_tokens(self._plan.is_soft_1T, *self._plan.images)
            self._see = False
            return
        if self.complete:
            return
        start, end = self._spans[self._at]
        soft = None if self._soft_1TD is None else self._soft_1TD[:, start:end]
        if soft is None and self._plan.images is not None:
            # All images came from the store. The pass is still the one that knows images: the same arithmetic.
            soft = np.zeros((1, end - start, self._model.config.text.hidden_size), self._model.dtype)
        self.cache = self._model.extend(self.cache, self._plan.tokens_1T[:, start:end], soft)
        self._at += 1
        if self._worth_keeping(end):
            self._keep(end)

    def keep(self) -> None:
        """Hands the cache of the whole prompt to the store. It must not be written any more."""
        self._store.put(Entry(self.cache, self._plan.keys_T, self._plan.ends, self._plan.images is not None))

    def _worth_keeping(self, end: int) -> bool:
        """Few of a long prompt's chunk ends: after 1, 2, 4, ... chunks, and the last before the prompt's own."""
        if end == self._plan.length or end not in self._plan.ends:
            return False
        passes = self._plan.ends.index(end) + 1
        return passes.bit_count() == 1 or passes == len(self._plan.ends) - 1

    def _keep(self, end: int) -> None:
        model = self._model
        capacity = min(self.cache.capacity, model.capacity(end))
        if self._store.reuse != "off":
            window = model.config.text.sliding_window
            copy = programs.arrange(self.cache, [0], capacity, window)
            ends = tuple(e for e in self._plan.ends if e <= end)
            self._store.put(Entry(copy, self._plan.keys_T[:end], ends, self._plan.images is not None))


def _spans(plan: Plan, start: int, chunk: int) -> list[tuple[int, int]]:
    """The passes that are left. From a start that is one of the plan's own ends they are the plan's."""
    if start in (0, *plan.ends):
        ends = [start, *(end for end in plan.ends if end > start)]
        return list(itertools.pairwise(ends))
    soft_1T = None if plan.images is None else plan.is_soft_1T[:, start:]
    return [(a + start, b + start) for a, b in chunks(plan.length - start, chunk, soft_1T)]
