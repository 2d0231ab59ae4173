"""A checkpoint with the 26B's real layer shapes, random weights and fewer layers, to try loading and running at size.

python -m tools.synthetic /tmp/six-layers              six layers (five sliding, one full): about 11 GB
python -m tools.inspect /tmp/six-layers
python -m tools.synthetic /tmp/six-layers --run        loads it, runs one denoising step, reports time and memory
"""

from __future__ import annotations

import argparse
import dataclasses
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import ml_dtypes
import numpy as np

from dgemma_jax.checkpoint.names import entries
from dgemma_jax.checkpoint.safetensors_writing import write_sharded
from dgemma_jax.config import DIFFUSION_GEMMA_26B_A4B, GenerationConfig, ModelConfig
from dgemma_jax.config_json import write_config
from tools.options import seed as seed_number

T = TypeVar("T")


def main(arguments: list[str] | None = None) -> int:
    """Writes the folder, or with `--run` uses it."""
    options = parser().parse_args(arguments)
    try:
        if options.run:
            run(options.folder, options.dtype)
        else:
            write(options.folder, synthetic_config(options.layers), options.seed)
    except (ValueError, OSError) as error:
        print(f"synthetic: {error}", file=sys.stderr)
        return 2
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="python -m tools.synthetic", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    top.add_argument("folder", type=Path, metavar="DIR")
    top.add_argument("--layers", type=int, choices=range(6, 31, 6), default=6, help="text layers (default %(default)s)")
    top.add_argument("--seed", type=seed_number, default=0, help="of the weights (default %(default)s)")
    top.add_argument("--run", action="store_true", help="load the folder and run one step instead of writing it")
    top.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="for --run")
    return top


def synthetic_config(layers: int) -> ModelConfig:
    """The published configuration with its first `layers` text layers and no vision tower."""
    published = DIFFUSION_GEMMA_26B_A4B
    text = dataclasses.replace(published.text, layer_types=published.text.layer_types[:layers])
    return dataclasses.replace(published, text=text, vision=None)


def write(folder: Path, config: ModelConfig, seed: int) -> None:
    """Writes random bf16 tensors, one at a time. Matrices have one over the square root of their fan-in as spread."""
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    total = write_sharded(folder, _tensors(config, seed))  # refuses a folder that has weights already
    seconds = time.monotonic() - started
    write_config(config, GenerationConfig(), folder)
    print(f"{folder}: {total:,} bytes in {seconds:.0f} s, {total / seconds / 1e9:.2f} GB/s")


def _tensors(config: ModelConfig, seed: int) -> Iterator[tuple[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    for entry in entries(config):
        if len(entry.shape) == 1:
            yield entry.name, np.ones(entry.published_shape, ml_dtypes.bfloat16)
            continue
        # A block of normals, repeated: the values do not matter here, only that they are lively and quick to make.
        block = (rng.normal(size=1 << 20) * entry.published_shape[-1] ** -0.5).astype(ml_dtypes.bfloat16)
        yield entry.name, np.resize(block, entry.published_shape)


def run(folder: Path, dtype: str) -> None:
    """Loads, prefills 256 tokens, denoises one canvas for one step, and reports each part."""
    import jax

    import dgemma_jax

    model = _timed("load", lambda: dgemma_jax.load(folder, dtype=dtype))
    tokens = np.arange(256)[None] % model.config.text.vocab_size
    cache = _timed("prefill of 256", lambda: jax.block_until_ready(model.prefill(tokens)))
    canvas = np.arange(model.config.canvas_length)[None] + 1000
    logits = _timed("one step", lambda: jax.block_until_ready(model.denoise_logits(cache, canvas)))
    print(f"logits {logits.shape} {logits.dtype}, largest {float(abs(logits).max()):.2f}")


def _timed(what: str, function: Callable[[], T]) -> T:
    started = time.monotonic()
    result = function()
    # ru_maxrss counts pages of the mapped files that were touched as well.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{what}: {time.monotonic() - started:.1f} s, peak resident {peak:.1f} GB", flush=True)
    return result


if __name__ == "__main__":
    sys.exit(main())
