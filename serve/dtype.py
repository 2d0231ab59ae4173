"""The type of the weights, where the flags leave it open."""

from __future__ import annotations

from pathlib import Path

import jax

from dgemma_jax.checkpoint.names import entries
from dgemma_jax.config_json import read_model_config
from dgemma_jax.engine.memory import machine_bytes

SHARE = 1 / 4
"""Of the machine's or container's memory, what float32 weights may take on a CPU before bfloat16 is chosen."""


def choose_dtype(wanted: str, folder: Path) -> str:
    """`wanted`, or for "auto": bfloat16; on a CPU float32 where it has room.

    XLA's CPU backend computes bfloat16 by widening it, time and again: a step of the demo takes 1.5 times as long.

    Raises:
        ValueError, OSError: the folder's config is not one.
    """
    if wanted != "auto":
        return wanted
    size = 4 * sum(entry.size for entry in entries(read_model_config(folder)))
    return "float32" if jax.default_backend() == "cpu" and size <= SHARE * machine_bytes() else "bfloat16"
