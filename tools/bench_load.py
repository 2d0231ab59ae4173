"""`bench load`: loading a checkpoint, and compiling a denoising step without and with a compilation cache."""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

import dgemma_jax
from tools.bench_report import report, shown
from tools.bench_step import prepared

T = TypeVar("T")


def register(commands: Any) -> None:
    """Adds the subcommand."""
    parser = commands.add_parser("load", help="loading and compiling", description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="DIR", help="the folder to load")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="default %(default)s")
    parser.add_argument("--quantize", choices=("int8", "int4"), help="weights of 8 or 4 bits (default: neither)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> str:
    """Measures and reports. Every figure is of one run: a file that was read once is in memory the next time."""
    jax.block_until_ready(jnp.zeros(1))  # the device's own start is not the checkpoint's
    before = peak_memory()
    model, loading = timed(lambda: ready(dgemma_jax.load(options.checkpoint, options.dtype, quantize=options.quantize)))
    after = peak_memory()
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(model.params))
    cache = model.prefill(np.zeros((1, 1), np.int64))
    with tempfile.TemporaryDirectory() as folder:
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        _, first = timed(lambda: prepared(model, cache))
        jax.clear_caches()
        _, second = timed(lambda: prepared(model, cache))
        jax.config.update("jax_compilation_cache_dir", None)
    times = {"load": loading, "compile a step": first, "compile it again, cached": second}
    figures = [{"name": name, "median_ms": seconds * 1e3, "spread_ms": 0.0} for name, seconds in times.items()]
    more = {
        "weights GB": weights / 1e9,
        "GB/s": weights / 1e9 / loading,
        # Pages of the mapped files that were touched count too.
        "peak resident GB": {"before": before / 1e9, "loaded": after / 1e9},
    }
    settings = {"model": str(options.checkpoint), "dtype": options.dtype, "quantize": options.quantize}
    return shown(report("load", settings, figures, **more), options.json)


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
