"""Benchmarks, with the machine's own peaks measured in the same run.

python -m tools.bench step --against transformers     a denoising step beside transformers' on the same weights
python -m tools.bench moe | head | prefill            parts of a pass, their backends in turn
python -m tools.bench load --checkpoint DIR           loading and compiling
python -m tools.bench all --out DIR                   step, moe, head and prefill, of several sizes and weights
python -m tools.bench quality                         answers and logits of quantised weights against full ones
python -m tools.bench serve                           a running server under the load of many clients

Progress goes to stderr, the report to stdout. See docs/performance.md.
"""

from __future__ import annotations

import argparse
import sys

from tools import bench_all, bench_head, bench_load, bench_moe, bench_prefill, bench_quality, bench_serve, bench_step

PARTS = (bench_all, bench_step, bench_moe, bench_head, bench_prefill, bench_load, bench_quality, bench_serve)
"""A command each: a module with `add_command`, which sets `run`."""


def main(arguments: list[str] | None = None) -> int:
    """Runs one benchmark; 0, or 1 where what was measured is wrong, or 2 for a problem with what was given."""
    options = parser().parse_args(arguments)
    try:
        return options.run(options)
    except (ValueError, OSError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("bench: stopped", file=sys.stderr)
        return 130


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="python -m tools.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    for part in PARTS:
        part.add_command(commands)
    return top


if __name__ == "__main__":
    sys.exit(main())
