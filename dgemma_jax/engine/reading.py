"""Prompts on their way into caches of their own beside the batch: one pass by pass, or several short ones in one."""

from __future__ import annotations

import dataclasses
import itertools
from collections import deque
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from dgemma_jax import cache as kv
from dgemma_jax.buckets import ImageGroup, chunks
from dgemma_jax.engine import programs
from dgemma_jax.engine.memory import READ_TOGETHER, row_bytes, rows_bucket
from dgemma_jax.engine.plan import Plan
from dgemma_jax.engine.prefix import Entry, PrefixStore
from dgemma_jax.pretrained import Model


class Reading:
    """`cached` tokens come from an earlier prompt; `step` until `complete`, then `cache` holds the prompt."""

    def __init__(self, model: Model, plan: Plan, store: PrefixStore) -> None:
        self.plan = plan
        self._model, self._store = model, store
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
        self._unseen = deque(_unseen(model, plan, self.cached))
        # Zeros where images came from the store: the pass is still the one that knows images, with the same arithmetic.
        self._soft_1TD: np.ndarray | None = None
        if plan.images is not None:
            self._soft_1TD = np.zeros((1, plan.length, text.hidden_size), model.dtype)

    @property
    def complete(self) -> bool:
        """Whether the whole prompt is in the cache."""
        return not self._unseen and self._at == len(self._spans)

    def step(self) -> None:
        """One unit of work: the vision tower over a group of images, or one pass over a chunk of the prompt."""
        if self._unseen:
            group, places = self._unseen.popleft()
            assert self.plan.images is not None and self._soft_1TD is not None
            self._soft_1TD[0, places] = self._model.see(self.plan.images, group)
            return
        if self.complete:
            return
        start, end = self._spans[self._at]
        soft = None if self._soft_1TD is None else self._soft_1TD[:, start:end]
        self.cache = self._model.extend(self.cache, self.plan.tokens_1T[:, start:end], soft)
        self._at += 1
        if self._worth_keeping(end):
            self._keep(end)

    def rest(self) -> np.ndarray:
        """The tokens [T] that no pass has read."""
        return self.plan.tokens_1T[0, self.plan.length if self.complete else self._spans[self._at][0] :]

    def finish(self, cache: kv.Cache) -> None:
        """Takes the cache of the whole prompt, which was read elsewhere."""
        self.cache, self._at = cache, len(self._spans)

    def keep(self) -> None:
        """Hands the cache of the whole prompt to the store. It must not be written any more."""
        self._store.put(Entry(self.cache, self.plan.keys_T, self.plan.ends, self.plan.images is not None))

    def _worth_keeping(self, end: int) -> bool:
        """Few of a long prompt's chunk ends: after 1, 2, 4, ... chunks, and the last before the prompt's own."""
        if end == self.plan.length or end not in self.plan.ends:
            return False
        passes = self.plan.ends.index(end) + 1
        return passes.bit_count() == 1 or passes == len(self.plan.ends) - 1

    def _keep(self, end: int) -> None:
        model = self._model
        capacity = min(self.cache.capacity, model.capacity(end))
        if self._store.has_room_for(row_bytes(model.config.text, capacity, model.dtype)):
            window = model.config.text.sliding_window
            copy = programs.arrange(self.cache, [0], capacity, window)
            ends = tuple(e for e in self.plan.ends if e <= end)
            self._store.put(Entry(copy, self.plan.keys_T[:end], ends, self.plan.images is not None))


def read_together(model: Model, readings: Sequence[Reading]) -> None:
    """All that is left of several short prompts, in one pass.

    Numbers may differ in their last bits from those of passes alone, as between batches of different size.
    """
    readings = [reading for reading in readings if not reading.complete]  # some may be in the store as a whole
    if not readings:
        return
    padded = [*readings, *[readings[-1]] * (rows_bucket(len(readings), READ_TOGETHER) - len(readings))]
    rests = [reading.rest() for reading in padded]
    tokens_BT = np.zeros((len(padded), max(map(len, rests))), np.int64)
    for row, rest in enumerate(rests):
        tokens_BT[row, : len(rest)] = rest
    together = programs.together([reading.cache for reading in padded], model.mesh)
    for reading in readings:
        for layer in reading.cache.layers:
            for x in layer:
                x.delete()
    counts = np.asarray([len(rest) for rest in rests])
    together = model.extend(together, tokens_BT, None, counts)
    for row, reading in enumerate(readings):
        reading.finish(programs.take(together, np.int32(row), model.mesh))


def _unseen(model: Model, plan: Plan, cached: int) -> list[tuple[ImageGroup, np.ndarray]]:
    """The groups of images that are not cached, and the places of their tokens in the prompt.

    A group that is cached in part goes through the tower as a whole: it rounds as without the cache.
    """
    if plan.images is None:
        return []
    places = np.flatnonzero(plan.is_soft_1T)
    runs = np.split(places, np.flatnonzero(np.diff(places) > 1) + 1)  # one for each image
    seen = [(group, np.concatenate(runs[group.start : group.end])) for group in model.image_groups(plan.images)]
    return [(group, places) for group, places in seen if places[-1] >= cached]


def _spans(plan: Plan, start: int, chunk: int) -> list[tuple[int, int]]:
    """The passes that are left. From a start that is one of the plan's own ends they are the plan's."""
    if start in (0, *plan.ends):
        ends = [start, *(end for end in plan.ends if end > start)]
        return list(itertools.pairwise(ends))
    soft_1T = None if plan.images is None else plan.is_soft_1T[:, start:]
    return [(a + start, b + start) for a, b in chunks(plan.length - start, chunk, soft_1T)]
