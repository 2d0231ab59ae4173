"""Measure: `serve` drives a running server with many clients."""

from __future__ import annotations

import argparse
import sys

from tools import bench_serve

PARTS = (bench_serve,)
"""A command each: a module with `add_command`, which sets `run`."""


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; 0, or 1 where what was measured is wrong, or 2 for a problem with what was given."""
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
    top = argparse.ArgumentParser(prog="python -m tools.bench", description=__doc__)
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    for part in PARTS:
        part.add_command(commands)
    return top


if __name__ == "__main__":
    sys.exit(main())
