"""`bench load`: loading a checkpoint, and compiling a denoising step without and with a compilation cache."""

from __future__ import annotations

import argparse
import contextlib
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

import dgemma_jax
from dgemma_jax.sharding import describe
from tools.bench_model import add_mesh
from tools.bench_report import printing, report, shown
from tools.bench_step import prepared

T = TypeVar("T")


def add_command(commands: Any) -> None:
    """Declares the command."""
    parser = commands.add_parser("load", help="loading and compiling", description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="DIR", help="the folder to load")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="default %(default)s")
    parser.add_argument("--quantize", choices=("int8", "int4"), help="weights of 8 or 4 bits (default: neither)")
    add_mesh(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=printing(measure))


def measure(options: argparse.Namespace) -> str:
    """Measures and reports. Every figure is of one run: a file that was read once is in memory the next time."""
    jax.block_until_ready(jnp.zeros(1))  # the device's own start is not the checkpoint's
    before = peak_memory()
    choices = {"mesh": options.mesh, "quantize": options.quantize}
    model, loading = timed(lambda: ready(dgemma_jax.load(options.checkpoint, options.dtype, **choices)))
    after = peak_memory()
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(model.params))
    cache = model.prefill(np.zeros((1, 1), np.int64))
    with fresh_cache():
        _, first = timed(lambda: prepared(model, cache))
        jax.clear_caches()
        _, second = timed(lambda: prepared(model, cache))
    times = {"load": loading, "compile a step": first, "compile it again, cached": second}
    figures = [{"name": name, "median_ms": seconds * 1e3, "spread_ms": 0.0} for name, seconds in times.items()]
    more = {
        "weights GB": weights / 1e9,
        "GB/s": weights / 1e9 / loading,
        # Pages of the mapped files that were touched count too.
        "peak resident GB": {"before": before / 1e9, "loaded": after / 1e9},
    }
    settings = {"model": str(options.checkpoint), "dtype": options.dtype, "quantize": options.quantize}
    settings["mesh"] = describe(model.mesh)
    return shown(report("load", settings, figures, **more), options.json)


@contextlib.contextmanager
def fresh_cache() -> Iterator[None]:
    """Compiled programs are kept in an empty folder; afterwards as before."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    with tempfile.TemporaryDirectory() as folder:
        try:
            for name, value in zip(names, (folder, 0.0), strict=True):
                jax.config.update(name, value)
            compilation_cache.reset_cache()  # the folder is read once, at the first program
            yield
        finally:
            for name, value in before.items():
                jax.config.update(name, value)
            compilation_cache.reset_cache()


def ready(model: dgemma_jax.Model) -> dgemma_jax.Model:
    """Waits until the weights are on the device."""
    jax.block_until_ready(model.params)
    return model


def timed(function: Callable[[], T]) -> tuple[T, float]:
    """The result, and seconds."""
    start = time.perf_counter()
    return function(), time.perf_counter() - start


def peak_memory() -> float:
    """Bytes that were resident at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
