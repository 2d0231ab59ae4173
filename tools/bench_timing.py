"""Timing, so that it means something on a machine that others use: all candidates in turn, round after round.

candidates by name -> interleaved -> samples by name      the machine's own peaks are candidates among them
"""

from __future__ import annotations

import dataclasses
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from tools.roofline import Work

MATRIX, COPY = "machine: matrix product", "machine: copy"
_MATRIX_SIZE, _COPY_BYTES, _CALLS = {"cpu": 2048}, {"cpu": 2**27}, {"cpu": 1}


@dataclasses.dataclass(frozen=True)
class Sample:
    """Seconds of each round."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Between the quartiles."""
        if len(self.seconds) < 2:
            return 0.0
        first, _, third = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return third - first


@dataclasses.dataclass(frozen=True)
class Peaks:
    """What the machine did in the same run: operations of a matrix product and bytes read and written, a second."""

    flops: float
    bytes: float


def interleaved(candidates: dict[str, Callable[[], Any]], repeats: int) -> dict[str, Sample]:
    """One warm-up of each, then as many rounds of all of them in turn: seconds of a call.

    On an accelerator a round is several calls, of which the last is waited for: as in the loop over steps it then need
    not wait for the host in between. CPU devices might run them beside each other.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for round_ in range(repeats + 1):
        calls = _CALLS.get(jax.default_backend(), 10) if round_ else 1
        for name, run in candidates.items():
            start = time.perf_counter()
            for _ in range(calls):
                result = run()
            jax.block_until_ready(result)
            taken = (time.perf_counter() - start) / calls
            if round_:
                seconds[name].append(taken)
            print(f"{name}: {'warm-up' if not round_ else f'round {round_}'} {taken:.3f} s", file=sys.stderr)
    return {name: Sample(tuple(values)) for name, values in seconds.items()}


def peak_candidates(dtype: jnp.dtype) -> dict[str, Callable[[], Any]]:
    """A square matrix product and a copy, large enough for the device to show what it can do."""
    platform = jax.default_backend()
    matrix = jnp.ones((_MATRIX_SIZE.get(platform, 8192),) * 2, dtype)
    numbers = jnp.ones(_COPY_BYTES.get(platform, 2**31) // 4, jnp.float32)
    exact = jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None
    product = jax.jit(lambda x: jnp.matmul(x, x, precision=exact))
    # In place: fresh memory would measure how fast the system hands out pages.
    copy, held = jax.jit(lambda x: x + 1, donate_argnums=0), [numbers]

    def again() -> jax.Array:
        held[0] = copy(held[0])
        return held[0]

    return {MATRIX: lambda: product(matrix), COPY: again}


def peaks(samples: dict[str, Sample], mesh: Mesh | None = None) -> Peaks:
    """The best round of the candidates of `peak_candidates`: nothing was ever faster than that here.

    They run on one device: a mesh can do so many times that, but of CPU devices, which share the processor.
    """
    platform = jax.default_backend()
    devices = 1 if mesh is None or platform == "cpu" else mesh.size
    size, copied = _MATRIX_SIZE.get(platform, 8192), _COPY_BYTES.get(platform, 2**31)
    return Peaks(
        devices * 2.0 * size**3 / min(samples[MATRIX].seconds), devices * 2.0 * copied / min(samples[COPY].seconds)
    )


def temporaries(compiled: jax.stages.Compiled) -> float:
    """Megabytes that a program takes beside its arguments and results."""
    memory = compiled.memory_analysis()
    assert memory is not None, "every backend that runs here tells"
    return memory.temp_size_in_bytes / 1e6


def figure(name: str, sample: Sample, work: Work | None, peak: Peaks) -> dict[str, Any]:
    """One line of a report. `share`: the least time at the measured peaks, as a part of the median."""
    line: dict[str, Any] = {"name": name, "median_ms": sample.median * 1e3, "spread_ms": sample.spread * 1e3}
    if work is not None:
        floor = work.seconds(peak.flops, peak.bytes)
        line |= {"floor_ms": floor * 1e3, "share": floor / sample.median}
    return line
