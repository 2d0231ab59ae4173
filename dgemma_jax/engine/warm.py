"""Compiling ahead: every program that requests will need, run once on nothing."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed

import jax
import numpy as np

from dgemma_jax import cache as kv
from dgemma_jax.buckets import PREFILL_BUCKETS
from dgemma_jax.engine import programs
from dgemma_jax.engine.batch import Batch
from dgemma_jax.engine.device import ModelDevice
from dgemma_jax.engine.events import Request
from dgemma_jax.engine.memory import Budget
from dgemma_jax.pretrained import Model
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
    # Elsewhere compilers measure on the device, and must not disturb each other.
    threads = os.cpu_count() if jax.default_backend() == "cpu" else 1
    with ThreadPoolExecutor(threads, thread_name_prefix="warm-up") as pool:
        running = [pool.submit(_timed, *part) for part in _parts(device, truncation)]
        try:
            for part in as_completed(running):
                progress(part.result())
        finally:
            pool.shutdown(cancel_futures=True)


def _timed(line: str, work: Callable[[], object]) -> str:
    start = time.monotonic()
    work()
    return f"{line}: {time.monotonic() - start:.1f} s"


def _parts(device: ModelDevice, truncation: bool) -> Iterator[tuple[str, Callable[[], object]]]:
    """What is to be compiled, each part with its name; what takes longest comes first."""
    budget, canvas = device.budget, device.model.config.canvas_length
    fitting = [size for size in capacities(budget, canvas) if budget.fits([size])]
    for options in [PLAIN, SamplingOptions(top_k=1)] if truncation else [PLAIN]:
        for below, capacity in zip([0, *fitting], fitting, strict=False):
            length = max(1, below + 1 - canvas)  # of the shortest prompt whose cache is this large
            for rows in batch_rows(budget, capacity):
                line = f"canvases of {rows} rows, {capacity} positions" + (", truncated" if options.truncates else "")
                yield line, functools.partial(_batch, device, rows, capacity, length, options)
    for capacity in fitting:
        for size in sorted({canvas, *PREFILL_BUCKETS}):
            if size <= capacity:
                line = f"prompt pass of {size} tokens, {capacity} positions"
                yield line, functools.partial(_pass, device.model, size, capacity)
        yield f"copies of {capacity} positions", functools.partial(_arrange, device, capacity)


def _pass(model: Model, size: int, capacity: int) -> None:
    tokens = np.zeros((1, min(size, capacity - model.config.canvas_length)), np.int64)  # as `check_tokens` has them
    model.extend(kv.empty(model.config.text, 1, capacity, model.dtype), tokens, None)


def _arrange(device: ModelDevice, capacity: int) -> None:
    """Copies between the batch sizes next to each other, and to every other capacity."""
    text, canvas = device.model.config.text, device.model.config.canvas_length
    sizes = sorted({1, *batch_rows(device.budget, capacity)})
    for index, rows in enumerate(sizes):
        cache = kv.empty(text, rows, capacity, device.model.dtype)
        for other in sizes[max(0, index - 1) : index + 2]:
            programs.arrange(cache, [0] * other, capacity, text.sliding_window)
        for size in capacities(device.budget, canvas):
            if device.budget.fits([size] * rows):
                programs.arrange(cache, range(rows), size, text.sliding_window)


def _batch(device: ModelDevice, rows: int, capacity: int, length: int, options: SamplingOptions) -> None:
    """Fills a batch of so many rows, and does with it what the engine would."""
    model = device.model
    batch = Batch(model, device.budget, device.apart)
    plan = device.plan(Request(tokens=(0,) * length, max_new_tokens=1, options=options))
    joined = 0
    while joined < device.budget.slots and device.budget.rows(joined + 1) <= rows:
        batch.join(joined, plan, kv.empty(model.config.text, 1, capacity, model.dtype))
        joined += 1
    batch.denoise(0)
    batch.logprobs(0, 1, 1)
    batch.write(0, batch.copy(0))
    for id in range(joined):
        batch.leave(id)
