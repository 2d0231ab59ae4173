"""`bench load`: loading a checkpoint, and compiling a denoising step without and with a compilation cache.

Loading is held against plain reads of the same files and a plain copy of as many bytes to the device, the slower of
them. Not on a CPU that is given full weights: there files may be mapped, and what was loaded is not read yet.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

import dgemma_jax
from dgemma_jax.checkpoint.load import ORBAX_FOLDER, THREADS
from dgemma_jax.sharding import describe
from tools.bench_model import add_mesh
from tools.bench_report import printing, report, shown
from tools.bench_step import prepared

PIECE, COPIED = 2**26, 2**29
"""Bytes of a plain read, and of a plain copy."""

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
    """Measures and reports. Every figure is of one run, of files that the system was asked to forget before."""
    jax.block_until_ready(jnp.zeros(1))  # the device's own start is not the checkpoint's
    reading = read_seconds(files := weight_files(options.checkpoint))
    forget(files)
    before = peak_memory()
    choices = {"mesh": options.mesh, "quantize": options.quantize}
    model, loading = timed(lambda: ready(dgemma_jax.load(options.checkpoint, options.dtype, **choices)))
    after = peak_memory()
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(model.params))
    times = {"load": loading, **compiling(model)}
    figures = [{"name": name, "median_ms": seconds * 1e3, "spread_ms": 0.0} for name, seconds in times.items()]
    on_cpu = jax.default_backend() == "cpu"
    copying = 0.0 if on_cpu else weights / copy_rate()
    if options.quantize or not on_cpu:
        floor = max(reading, copying)
        figures[0] |= {"floor_ms": floor * 1e3, "share": floor / loading}
    more = {
        "weights GB": weights / 1e9,
        "GB/s": weights / 1e9 / loading,
        "plain reads of the files, s": reading,
        "plain copies to the device, s": copying,
        # Pages of the mapped files that were touched count too.
        "peak resident GB": {"before": before / 1e9, "loaded": after / 1e9},
    }
    settings = {"model": str(options.checkpoint), "dtype": options.dtype, "quantize": options.quantize}
    settings["mesh"] = describe(model.mesh)
    return shown(report("load", settings, figures, **more), options.json)


def compiling(model: dgemma_jax.Model) -> dict[str, float]:
    """Seconds that it takes to compile a step, and again where what was compiled is kept in a folder."""
    cache = model.prefill(np.zeros((1, 1), np.int64))
    with fresh_cache():
        _, first = timed(lambda: prepared(model, cache))
        jax.clear_caches()
        _, second = timed(lambda: prepared(model, cache))
    return {"compile a step": first, "compile it again, cached": second}


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a checkpoint's weights."""
    orbax = folder / ORBAX_FOLDER
    found = orbax.rglob("*") if orbax.is_dir() else folder.glob("*.safetensors")
    return sorted(path for path in found if path.is_file())


def forget(files: list[Path]) -> None:
    """Asks the system to forget what it keeps of files in memory, so that they are read from where they lie."""
    if not hasattr(os, "posix_fadvise"):
        return
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())  # what is not written yet is not forgotten
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_seconds(files: list[Path]) -> float:
    """How long plain reads of forgotten files take, pieces of them at the same time as loading reads tensors."""
    forget(files)
    starts = [(path, start) for path in files for start in range(0, path.stat().st_size, PIECE)]

    def read(piece: tuple[Path, int]) -> None:
        with piece[0].open("rb", buffering=0) as file:
            file.seek(piece[1])
            file.read(PIECE)

    with ThreadPoolExecutor(THREADS) as pool:
        return timed(lambda: list(pool.map(read, starts)))[1]


def copy_rate() -> float:
    """Bytes a second from the host's memory to a device: the best of three."""
    numbers = np.ones(COPIED, np.uint8)
    return COPIED / min(timed(lambda: jax.block_until_ready(jax.device_put(numbers)))[1] for _ in range(3))


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
