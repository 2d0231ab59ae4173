"""How many bytes of keys and values there may be: the number of rows and their length follow from it.

A row is the cache of one request. All rows of the batch have one capacity. Beside the batch there are at most two
more rows: the prompt being read, and the row being extended by its canvas. Where several short prompts are read in one
pass, there are twice as many rows of the smallest capacity: each by itself, and all as one batch.
"""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp

from dgemma_jax.buckets import capacity_bucket
from dgemma_jax.config import SLIDING, TextConfig
from dgemma_jax.engine.events import RefusedError

ROWS_BESIDE = 2
READ_TOGETHER = 4
"""Short prompts that are read in one pass at most."""
SHARE = 0.8
"""Of the memory that is left on a device, what keys and values get by default; activations need the rest."""
CPU_SHARE = 1 / 8
"""Of the machine's or container's memory, where the device does not tell what it has left."""


def row_bytes(config: TextConfig, capacity: int, dtype: jnp.dtype) -> int:
    """Keys and values of one row: a ring for each sliding layer, every position for each full one."""
    numbers = 0
    for kind in config.layer_types:
        slots = min(capacity, config.sliding_window) if kind == SLIDING else capacity
        numbers += 2 * slots * config.key_value_heads(kind) * config.head_size(kind)
    return numbers * jnp.dtype(dtype).itemsize


def rows_bucket(rows: int, slots: int) -> int:
    """Rows of the batch that has to hold so many: 1, 2, 4, ... and at last all slots."""
    return min(1 << (rows - 1).bit_length(), slots)


def free_bytes() -> int:
    """What keys and values get where nothing else is said."""
    stats = jax.devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return int(SHARE * (stats["bytes_limit"] - stats["bytes_in_use"]))
    return int(CPU_SHARE * machine_bytes())


def machine_bytes(cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """The machine's memory, or what its container may use of it."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for limit in ("memory.max", "memory/memory.limit_in_bytes"):  # of the kernel's control groups, version 2 and 1
        with contextlib.suppress(OSError, ValueError):  # there is no such file, or it says "max"
            found.append(int((cgroups / limit).read_text()))
    return min(found)


@dataclasses.dataclass(frozen=True)
class Budget:
    """Decides which requests fit together. `positions` is the longest context: prompt and answer."""

    total: int
    slots: int
    positions: int
    text: TextConfig
    dtype: jnp.dtype
    fixed_rows: bool = False

    def capacity(self, needed: int) -> int:
        """The capacity of a cache for so many tokens."""
        return capacity_bucket(needed, self.text.max_position_embeddings)

    def rows(self, running: int) -> int:
        """Rows of a batch for so many requests."""
        return self.slots if self.fixed_rows else rows_bucket(running, self.slots)

    def needs(self, lengths: Sequence[int], reading: int = 1) -> int:
        """Bytes for requests that will grow to these lengths, while so many prompts are read in one pass."""
        row = row_bytes(self.text, self.capacity(max(lengths)), self.dtype)
        together = 2 * rows_bucket(reading, READ_TOGETHER) * row_bytes(self.text, self.capacity(1), self.dtype)
        return (self.rows(len(lengths)) + ROWS_BESIDE) * row + (together if reading > 1 else 0)

    def fits(self, lengths: Sequence[int], reading: int = 1) -> bool:
        """Whether requests that will grow to these lengths can all be in the batch at once, to their ends."""
        return len(lengths) <= self.slots and self.needs(lengths, reading) <= self.total

    def fitted(self) -> Budget:
        """The same with no more positions than one request alone has room for."""
        longest = bisect.bisect_left(range(1, self.positions + 1), True, key=lambda length: not self.fits([length]))
        return dataclasses.replace(self, positions=longest)

    def check(self, length: int) -> None:
        """Raises RefusedError for a request that does not even fit alone."""
        if not self.fits([length]):
            raise RefusedError(
                f"a request of {length} tokens, prompt and answer, needs {self.needs([length]):,} bytes of keys and "
                f"values; this engine has {self.total:,}"
            )
