"""Compiling ahead: every program that requests will need, run once on nothing."""

from __future__ import annotations

import functools
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Literal, NamedTuple

import jax
import numpy as np

from dgemma_jax.buckets import ImageGroup, image_groups, prefill_bucket, prefill_sizes, short_prompt
from dgemma_jax.engine import programs
from dgemma_jax.engine.batch import Batch
from dgemma_jax.engine.device import ModelDevice
from dgemma_jax.engine.events import Request
from dgemma_jax.engine.memory import READ_TOGETHER, Budget, rows_bucket
from dgemma_jax.media.image import soft_token_budgets
from dgemma_jax.media.patches import Patches
from dgemma_jax.pretrained import Model
from dgemma_jax.sampling.options import PLAIN, SamplingOptions

logger = logging.getLogger(__name__)
_MOST_IMAGES = 8
"""Images of the usual size in a prompt for which programs are compiled ahead."""
_MOST_PATCHES_ON_CPU = 4096
"""Patches together for which they are, on a CPU: each program is run once, and larger ones would be in the way of the
first requests for too long. On other devices the tower's own limit holds, as nothing else runs yet."""


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


class Part(NamedTuple):
    """Something to compile: its name for people, how, the capacity it is for, and which requests alone need it."""

    line: str
    work: Callable[[], object]
    capacity: int
    only: Literal["truncation", "images"] | None = None


def warm_up(device: ModelDevice, progress: Callable[[str], None], everything: bool) -> Callable[[], None]:
    """Compiles for every capacity the passes over prompts, and for every batch size the denoising and the commit.

    Without `everything`, not what only requests with a truncation or with images need. On a CPU only the smallest
    capacity, that of short chats, is waited for: the rest is compiled beside the first requests. What is returned ends
    that, as soon as the program being compiled is done.
    """
    parts = parts_of(device, everything)
    # Other compilers measure on the device, and must not disturb anybody; devices that work together take one program
    # after another, all in the same order.
    if jax.default_backend() != "cpu" or device.model.mesh is not None or jax.process_count() > 1:
        for part in parts:
            progress(_timed(part))
        return lambda: None
    smallest = device.budget.capacity(device.model.config.canvas_length + 1)
    at_once = [part for part in parts if part.capacity == smallest and part.only is None]
    with ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="warm-up") as pool:
        running = [pool.submit(_timed, part) for part in at_once]
        try:
            for done in as_completed(running):
                progress(done.result())
        finally:
            pool.shutdown(cancel_futures=True)
    later = [part for part in parts if part not in at_once]
    # First what a short chat may ask for, then long prompts, then both together.
    return compile_behind(sorted(later, key=lambda part: (part.capacity > smallest) * (1 + bool(part.only))), progress)


def parts_of(device: ModelDevice, everything: bool) -> list[Part]:
    """All that `warm_up` compiles."""
    parts = [
        *_canvases(device, PLAIN),
        *_canvases(device, SamplingOptions(top_k=1)),
        *_passes(device),
        *_images(device),
    ]
    return [part for part in parts if everything or part.only is None]


def compile_behind(parts: Sequence[Part], progress: Callable[[str], None]) -> Callable[[], None]:
    """Compiles one part after another on a thread; what is returned ends it. So does the end of the process."""
    stop = threading.Event()

    def work() -> None:
        for part in parts:
            if stop.is_set() or not threading.main_thread().is_alive():
                return
            try:
                progress(_timed(part))
            except Exception:  # whoever needs the program compiles it again, and is told then
                logger.exception("cannot compile ahead: %s", part.line)

    thread = threading.Thread(target=work, name="warm-up")
    thread.start()

    def end() -> None:
        stop.set()
        thread.join()

    return end


def _timed(part: Part) -> str:
    start = time.monotonic()
    part.work()
    return f"{part.line}: {time.monotonic() - start:.1f} s"


def _fitting(device: ModelDevice) -> list[int]:
    budget = device.budget
    return [size for size in capacities(budget, device.model.config.canvas_length) if budget.fits([size])]


def _canvases(device: ModelDevice, options: SamplingOptions) -> Iterator[Part]:
    """Batches of every size at every capacity: what takes longest to compile."""
    fitting, canvas = _fitting(device), device.model.config.canvas_length
    for below, capacity in zip([0, *fitting], fitting, strict=False):
        length = max(1, below + 1 - canvas)  # of the shortest prompt whose cache is this large
        for rows in batch_rows(device.budget, capacity):
            line = f"canvases of {rows} rows, {capacity} positions" + (", truncated" if options.truncates else "")
            work = functools.partial(_batch, device, rows, capacity, length, options)
            yield Part(line, work, capacity, "truncation" if options.truncates else None)


def _passes(device: ModelDevice) -> Iterator[Part]:
    """Passes over prompts, with and without images, and copies."""
    model, canvas = device.model, device.model.config.canvas_length
    words = prefill_bucket(model.chunk, canvas)
    processor = model.processor
    seen = 0 if processor is None else max(processor.video_max_soft_tokens, *soft_token_budgets(processor))
    whole = prefill_bucket(max(model.chunk, seen), canvas)  # an image is never cut, however long it is
    for capacity in _fitting(device):
        for size in sorted({*prefill_sizes(canvas), whole}):
            line = f"prompt pass of {size} tokens, {capacity} positions"
            if size <= min(capacity, words):
                yield Part(line, functools.partial(_pass, model, size, capacity, False), capacity)
            if size <= min(capacity, whole) and model.config.vision is not None:
                work = functools.partial(_pass, model, size, capacity, True)
                yield Part(f"{line}, with images", work, capacity, "images")
        if capacity == min(_fitting(device)):
            for rows in sorted({rows_bucket(n, READ_TOGETHER) for n in range(2, device.together + 1)}):
                for size in [size for size in prefill_sizes(canvas) if size <= min(words, short_prompt(canvas))]:
                    line = f"prompt pass of {size} tokens over {rows} rows, {capacity} positions"
                    yield Part(line, functools.partial(_pass_together, model, size, rows, capacity), capacity)
        yield Part(f"copies of {capacity} positions", functools.partial(_arrange, device, capacity), capacity)


def _images(device: ModelDevice) -> Iterator[Part]:
    """The vision tower over one image of every size, a few of the usual one, and the frames of a video."""
    model = device.model
    vision, processor = model.config.vision, model.processor
    if vision is None or processor is None:
        return
    own, film = (processor.max_soft_tokens, _MOST_IMAGES), (processor.video_max_soft_tokens, processor.video_num_frames)
    cell, sizes = vision.patches_per_soft_token, set[tuple[int, int]]()
    for budget, most in (own, film, *((budget, 1) for budget in soft_token_budgets(processor))):
        groups = (group for n in range(1, most + 1) for group in image_groups([budget * cell] * n, cell))
        sizes |= {(group.patches, group.images) for group in groups}
    together = _MOST_PATCHES_ON_CPU if jax.default_backend() == "cpu" else math.inf
    for patches, images in sorted(size for size in sizes if math.prod(size) <= together):
        work = functools.partial(_see, model, images, patches)
        yield Part(f"{images} images of {patches} patches", work, min(_fitting(device)), "images")


def _pass(model: Model, size: int, capacity: int, images: bool) -> None:
    tokens = np.zeros((1, min(size, capacity - model.config.canvas_length)), np.int64)  # as `check_tokens` has them
    soft = np.zeros((*tokens.shape, model.config.text.hidden_size), model.dtype) if images else None
    model.extend(model.empty_cache(1, capacity), tokens, soft)


def _pass_together(model: Model, size: int, rows: int, capacity: int) -> None:
    caches = [model.empty_cache(1, capacity) for _ in range(rows)]
    tokens = np.zeros((rows, size), np.int64)
    cache = programs.together(caches, model.mesh)
    programs.take(model.extend(cache, tokens, None, np.ones(rows, np.int64)), np.int32(0), model.mesh)


def _see(model: Model, images: int, patches: int) -> None:
    assert model.config.vision is not None, "only a vision tower sees"
    values = np.zeros((patches, model.config.vision.patch_values), np.float32)
    blank = Patches(values, np.zeros((patches, 2), np.int32), 0)
    model.see([blank] * images, ImageGroup(0, images, images, patches))


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


def _batch(device: ModelDevice, rows: int, capacity: int, length: int, options: SamplingOptions) -> None:
    """Fills a batch of so many rows, and does with it what the engine would."""
    model = device.model
    batch = Batch(model, device.budget, device.apart)
    plan = device.plan(Request(tokens=(0,) * length, max_new_tokens=1, options=options))
    joined = 0
    while joined < device.budget.slots and device.budget.rows(joined + 1) <= rows:
        batch.join(joined, plan, model.empty_cache(1, capacity))
        joined += 1
    batch.denoise(0)
    batch.logprobs(0, np.zeros(model.config.canvas_length, np.int32), 1, 1)
    batch.choose(0, 0, np.ones(model.config.text.vocab_size, bool))
    batch.write(0, batch.copy(0))
    if joined > 1 and not device.apart:
        batch.read_at_once({0: np.zeros(model.config.canvas_length, np.int64)})
    for id in range(joined):
        batch.leave(id)
