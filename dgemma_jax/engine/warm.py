"""Compiling ahead: every program that requests will need, run once on nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np

from dgemma_jax.buckets import PREFILL_BUCKETS
from dgemma_jax.engine import programs
from dgemma_jax.engine.batch import Batch
from dgemma_jax.engine.device import ModelDevice
from dgemma_jax.engine.events import Request
from dgemma_jax.engine.memory import Budget
from dgemma_jax.sampling.options import PLAIN, SamplingOptions


def capacities(budget: Budget, canvas_length: int) -> list[int]:
    """The cache capacities that requests can have, smallest first."""
    found = {budget.capacity(canvas_length + 1), budget.capacity(budget.positions)}
    size = min(found)
    while size < max(found):
        found.add(size)
        size = budget.capacity(size + 1)
    return sorted(found)


def batch_rows(budget: Budget, capacity: int) -> list[int]:
    """The batch sizes that fit at a capacity, smallest first."""
    return sorted({budget.rows(n) for n in range(1, budget.slots + 1) if budget.fits([capacity] * n)})


def warm_up(device: ModelDevice, progress: Callable[[str], None], truncation: bool) -> None:
    """Compiles for every capacity the passes over prompts, and for every batch size the denoising and the commit."""
    canvas = device.model.config.canvas_length
    for capacity in capacities(device.budget, canvas):
        if device.budget.fits([capacity]):
            for line, seconds in _timed(_capacity(device, capacity, truncation)):
                progress(f"{line}: {seconds:.1f} s")


def _timed(lines: Iterator[str]) -> Iterator[tuple[str, float]]:
    start = time.monotonic()
    for line in lines:
        now = time.monotonic()
        yield line, now - start
        start = now


def _capacity(device: ModelDevice, capacity: int, truncation: bool) -> Iterator[str]:
    model, budget = device.model, device.budget
    canvas = model.config.canvas_length
    smaller = [size for size in capacities(budget, canvas) if size < capacity]
    for size in sorted({canvas, *PREFILL_BUCKETS}):
        if size <= capacity:
            tokens = np.zeros((1, min(size, capacity - canvas)), np.int64)  # as `check_tokens` has them
            model.extend(model.empty_cache(1, capacity), tokens, None)
            yield f"prompt pass of {size} tokens, {capacity} positions"
    _arrange(device, capacity)
    length = max(smaller, default=0) + 1  # the shortest prompt whose cache is this large
    wanted = [PLAIN, SamplingOptions(top_k=1)] if truncation else [PLAIN]
    for options in wanted:
        yield from _batches(device, capacity, max(1, length - canvas), options)


def _arrange(device: ModelDevice, capacity: int) -> None:
    """Copies between the batch sizes next to each other, and to every other capacity."""
    text, canvas = device.model.config.text, device.model.config.canvas_length
    sizes = sorted({1, *batch_rows(device.budget, capacity)})
    for index, rows in enumerate(sizes):
        cache = device.model.empty_cache(rows, capacity)
        for other in sizes[max(0, index - 1) : index + 2]:
            programs.arrange(cache, [0] * other, capacity, text.sliding_window)
        for size in capacities(device.budget, canvas):
            if device.budget.fits([size] * rows):
                programs.arrange(cache, range(rows), size, text.sliding_window)


def _batches(device: ModelDevice, capacity: int, length: int, options: SamplingOptions) -> Iterator[str]:
    """Grows a batch request by request and shrinks it again, as the engine would."""
    model, budget = device.model, device.budget
    batch = Batch(model, budget, device.apart)
    request = Request(tokens=(0,) * length, max_new_tokens=1, options=options)
    plan = device.plan(request)
    joined = 0
    for rows in batch_rows(budget, capacity):
        while joined < rows and budget.fits([capacity] * (joined + 1)):
            batch.join(joined, plan, model.empty_cache(1, capacity))
            joined += 1
        batch.denoise(0)
        batch.write(0, batch.copy(0))
        yield f"canvases of {rows} rows, {capacity} positions" + (", truncated" if options.truncates else "")
    for id in range(joined):
        batch.leave(id)
