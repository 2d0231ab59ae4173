"""Converts checkpoints between Hugging Face safetensors and Orbax, and from DeepMind's released Orbax tree.

python -m tools.convert SOURCE OUT                     safetensors to Orbax, or either Orbax tree to safetensors
python -m tools.convert SOURCE OUT --dtype float32
python -m tools.convert SOURCE OUT --quantize int8     matrices in 8 bits, which load onto any mesh as they are
python -m tools.convert fetch org/name                 downloads a published checkpoint

What was stopped goes on when the same command is given again. What was written is read back and compared bit by bit.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
from pathlib import Path

MULTIPLES = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def main(arguments: list[str] | None = None) -> int:
    """Converts or downloads; 2 with one message on stderr where something does not fit, 130 when interrupted."""
    given = sys.argv[1:] if arguments is None else arguments
    is_fetch = given[:1] == ["fetch"]
    options = fetch_parser().parse_args(given[1:]) if is_fetch else parser().parse_args(given)
    try:
        return run_fetch(options) if is_fetch else run_convert(options)
    except (ValueError, OSError) as error:
        print(f"convert: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("convert: stopped; it goes on when the same command is given again", file=sys.stderr)
        return 130


def parser() -> argparse.ArgumentParser:
    """The command line of a conversion."""
    top = argparse.ArgumentParser(
        prog="python -m tools.convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    top.add_argument("source", type=Path, metavar="SOURCE", help="checkpoint folder, or DeepMind's Orbax tree")
    top.add_argument("out", type=Path, metavar="OUT", help="folder to write: new, or of the same command stopped")
    top.add_argument("--to", choices=("safetensors", "orbax"), help="layout of OUT (default: the one SOURCE is not)")
    top.add_argument("--dtype", choices=("bfloat16", "float32"), help="of all weights (default: as each tensor is)")
    top.add_argument(
        "--quantize",
        choices=("int8", "int4"),
        help="8 or 4 bits for the matrices of experts, attention and MLP; to Orbax only (default: neither)",
    )
    top.add_argument(
        "--max-shard-size",
        type=byte_count,
        default="5GB",
        metavar="SIZE",
        help="of a part, which a safetensors file is; memory holds two or three (default %(default)s)",
    )
    top.add_argument(
        "--config",
        type=Path,
        metavar="DIR",
        help="folder with config.json, tokenizer and chat template for DeepMind's tree, which has none "
        "(default: the configuration of the published 26B, without tokenizer)",
    )
    top.add_argument("--json", action="store_true", help="print one JSON object")
    return top


def fetch_parser() -> argparse.ArgumentParser:
    """The command line of a download."""
    top = argparse.ArgumentParser(
        prog="python -m tools.convert fetch",
        description="Downloads weights, configuration and tokenizer of a checkpoint from the Hugging Face Hub.",
    )
    top.add_argument("repository", metavar="REPO", help="org/name on the Hugging Face Hub")
    top.add_argument("--revision", metavar="SHA", help="commit, branch or tag (default: the newest)")
    top.add_argument("--out", type=Path, metavar="DIR", help="folder to write (default: checkpoints/NAME)")
    top.add_argument("--json", action="store_true", help="print one JSON object")
    return top


def run_convert(options: argparse.Namespace) -> int:
    """Converts, and prints what was done."""
    # Here: a wrong flag is said at once, without waiting for JAX.
    import jax

    jax.config.update("jax_platforms", "cpu")  # weights pass through host memory; a busy accelerator is left alone

    import numpy as np
    from ml_dtypes import bfloat16

    from tools.convert_run import Conversion, convert

    dtypes = {None: None, "bfloat16": np.dtype(bfloat16), "float32": np.dtype(np.float32)}
    result = convert(
        Conversion(
            source=options.source,
            out=options.out,
            to=options.to,
            dtype=dtypes[options.dtype],
            quantize=options.quantize,
            max_shard_bytes=options.max_shard_size,
            config=options.config,
        )
    )
    if options.json:
        print(json.dumps(dataclasses.asdict(result)))
        return 0
    held = f", matrices in {result.quantised}" if result.quantised else ""
    went_on = f" ({result.parts_before} were there before)" if result.parts_before else ""
    print(
        f"{result.out}: {' to '.join(result.layouts)}, {result.tensors} tensors{held}, {result.bytes:,} bytes "
        f"in {result.parts} parts{went_on}, {result.seconds:.0f} s; read back and equal to {result.source}"
    )
    return 0


def run_fetch(options: argparse.Namespace) -> int:
    """Downloads, and prints the folder."""
    from dgemma_jax.checkpoint.hub import FETCHED_FILE, fetch

    folder = fetch(options.repository, options.revision, options.out)
    facts = json.loads((folder / FETCHED_FILE).read_text(encoding="utf-8"))
    print(json.dumps({"out": str(folder), **facts}) if options.json else f"{folder}: {facts['revision']}")
    return 0


def byte_count(text: str) -> int:
    """An argparse type: 5GB, 500MB, 2GiB, or bytes."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text, re.IGNORECASE)
    if not found or found[2].upper() not in MULTIPLES or float(found[1]) <= 0:
        raise argparse.ArgumentTypeError(f"must be a size such as 5GB or 500MB, found {text}")
    return int(float(found[1]) * MULTIPLES[found[2].upper()])


if __name__ == "__main__":
    sys.exit(main())
