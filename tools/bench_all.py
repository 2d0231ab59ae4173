"""`bench all`: the benchmarks of one model in one process, which draws its weights once; a report of each in a folder.

On an accelerator, where time is dear, all programs are compiled beside each other before anything is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax

from tools import bench_head, bench_model, bench_moe, bench_prefill, bench_step
from tools.options import names, positive, rate

MODULES = {"step": bench_step, "moe": bench_moe, "head": bench_head, "prefill": bench_prefill}
PARTS = {
    "step-1": "step",
    "step-4": "step --rows 4",
    "step-1-int8": "step --quantize int8",
    "step-8": "step --rows 8",
    "moe": "moe",
    "moe-1024": "moe --tokens 1024",
    "moe-crowded": "moe --skew 6",
    "moe-int8": "moe --quantize int8",
    "moe-int4": "moe --quantize int4",
    "moe-fp8": "moe --quantize fp8",
    "head-1": "head",
    "head-4": "head --rows 4",
    "prefill": "prefill",
}
"""In the order of what is most wanted, should the time run out."""
FOR_GPUS = ("--backends", "capacity_buckets,grouped_blocks,all_experts")
"""The loop over blocks and the ragged product take seconds there."""
COMPILED_TOGETHER = 8
"""Each holds two gigabytes for the peaks beside its own."""


def add_command(commands: Any) -> None:
    """Declares the command."""
    parser = commands.add_parser("all", help="all of step, moe, head and prefill", description=__doc__)
    bench_model.add_options(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the reports go, as NAME.json")
    parser.add_argument(
        "--parts", type=names, default=tuple(PARTS), metavar="NAMES", help=f"some of {', '.join(PARTS)} (default: all)"
    )
    parser.add_argument("--context", type=positive, default=512, help="prompt tokens (default %(default)s)")
    parser.add_argument("--seconds", type=rate, help="begin no part after so many (default: no limit)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Measures; 0, or 1 where a part failed or was not begun. Raises ValueError for an unknown part."""
    if unknown := sorted(set(options.parts) - set(PARTS)):
        raise ValueError(f"--parts must be some of {', '.join(PARTS)}, found {', '.join(unknown)}")
    begun = time.monotonic()
    options.out.mkdir(parents=True, exist_ok=True)
    with bench_model.shared(), tempfile.TemporaryDirectory(prefix="bench-") as folder:
        if jax.default_backend() != "cpu":
            _compile_together(options, os.environ.get("JAX_COMPILATION_CACHE_DIR") or folder)
        left = [part for part in options.parts if not _reported(part, options, begun)]
    if left:
        print(f"bench: not measured: {', '.join(left)}", file=sys.stderr)
    return 1 if left else 0


def _compile_together(options: argparse.Namespace, cache: str) -> None:
    """One round of every part, whose times mean nothing, so that the later ones find their programs in the cache."""
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    with ThreadPoolExecutor(COMPILED_TOGETHER) as pool:
        futures = {part: pool.submit(_measured, part, options, 1) for part in options.parts}
    for part, future in futures.items():
        if (error := future.exception()) is not None:
            print(f"bench: {part}, compiled beside the others: {error}", file=sys.stderr)


def _reported(part: str, options: argparse.Namespace, begun: float) -> bool:
    """Whether a part was measured, and its report written."""
    if options.seconds is not None and time.monotonic() - begun > options.seconds:
        return False
    try:
        text = _measured(part, options, options.repeats)
    except (ValueError, RuntimeError) as error:  # JAX's errors of compilers and devices are of the latter kind
        print(f"bench: {part}: {error}", file=sys.stderr)
        return False
    (options.out / f"{part}.json").write_text(text + "\n")
    for figure in json.loads(text)["figures"]:
        share = f"{figure['share']:8.0%} of roofline" if "share" in figure else ""
        print(f"{part:14}{figure['name']:24}{figure['median_ms']:10,.2f} ms{share}", flush=True)
    return True


def _measured(part: str, options: argparse.Namespace, repeats: int) -> str:
    command, *more = PARTS[part].split()
    if command == "moe" and jax.default_backend() == "gpu":
        more += FOR_GPUS
    if command in ("step", "prefill"):
        more += ["--context", str(options.context)]
    return MODULES[command].measure(_parser().parse_args([command, *more, *_given(options, repeats)]))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers()
    for module in MODULES.values():
        module.add_command(commands)
    return parser


def _given(options: argparse.Namespace, repeats: int) -> list[str]:
    """The options that all parts share, as they were given."""
    given = ["--json", "--repeats", str(repeats)]
    for name in ("checkpoint", "config", "preset", "dtype", "moe_backend", "head", "seed"):
        value = getattr(options, name)
        if value is not None and not (name == "preset" and (options.checkpoint or options.config)):
            given += [f"--{name.replace('_', '-')}", str(value)]
    return given
