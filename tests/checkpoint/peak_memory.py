"""Loads a checkpoint folder; prints the bytes that it took at most, and those of the weights. A process alone."""

import sys
from pathlib import Path

import jax

import dgemma_jax


def resident(what: str) -> int:
    """Bytes: VmRSS now, VmHWM at most so far."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith(what))


if __name__ == "__main__":
    small, folder, kind = sys.argv[1:]
    dgemma_jax.load(small, quantize=kind or None)  # whatever the first load brings: imports, threads, the device
    Path("/proc/self/clear_refs").write_text("5")  # the highest so far is what is there now
    before = resident("VmRSS")
    model = dgemma_jax.load(folder, quantize=kind or None)
    jax.block_until_ready(model.params)
    print(resident("VmHWM") - before, sum(leaf.nbytes for leaf in jax.tree.leaves(model.params)))
