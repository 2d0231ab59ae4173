"""What a checkpoint is: architecture, parameters and bytes per part, and whether its files hold what they should.

python -m tools.inspect checkpoints/demo
python -m tools.inspect --preset 26b-a4b        what the published checkpoint must contain
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from dgemma_jax.checkpoint import compressed
from dgemma_jax.checkpoint.load import require_match
from dgemma_jax.checkpoint.names import Entry, entries
from dgemma_jax.checkpoint.quantize import KINDS, is_quantizable, matrix_shape, predicted_bytes
from dgemma_jax.checkpoint.safetensors import INDEX_FILE, SINGLE_FILE, TensorFiles
from dgemma_jax.config import PRESETS, ModelConfig
from dgemma_jax.config_json import read_generation_config, read_model_config
from dgemma_jax.processor_json import read_processor_config
from tools.convert_layouts import open_source

BYTES = {"bfloat16": 2, "float32": 4}
FULL = "full"


def main(arguments: list[str] | None = None) -> int:
    """Prints the report; 2 with one message on stderr where something does not fit."""
    options = parser().parse_args(arguments)
    try:
        print(report(options))
    except (ValueError, OSError) as error:
        print(f"inspect: {error}", file=sys.stderr)
        return 2
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="python -m tools.inspect", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    which = top.add_mutually_exclusive_group(required=True)
    which.add_argument("folder", nargs="?", type=Path, metavar="DIR", help="checkpoint folder")
    which.add_argument("--preset", choices=sorted(PRESETS), help="a known configuration instead of a folder")
    top.add_argument("--dtype", choices=sorted(BYTES), default="bfloat16", help="for bytes (default %(default)s)")
    top.add_argument("--tensors", action="store_true", help="also list every tensor's name and shape")
    top.add_argument("--json", action="store_true", help="print one JSON object")
    return top


def report(options: argparse.Namespace) -> str:
    """The report of a folder, whose files are checked, or of a preset, which has none."""
    config = PRESETS[options.preset] if options.preset else read_model_config(options.folder)
    table = list(entries(config))
    files = _fp8_files(options.folder, table) if options.folder else None
    found = {"config": dataclasses.asdict(config), **_sizes(table, BYTES[options.dtype], files)}
    if options.folder:
        if config.vision is not None:
            found["processor"] = dataclasses.asdict(read_processor_config(options.folder, config))
        found["generation"] = dataclasses.asdict(read_generation_config(options.folder))
        found["files"] = _stored(options.folder) if files is None else _stored_fp8(files)
    if options.tensors:
        found["names"] = {entry.name: entry.published_shape for entry in sorted(table, key=lambda e: e.name)}
    return json.dumps(found, indent=1) if options.json else _text(config, found, options.dtype)


def _fp8_files(folder: Path, table: list[Entry]) -> TensorFiles | None:
    """The files of a folder with FP8 weights, checked; None for other folders."""
    if not any((folder / name).is_file() for name in (SINGLE_FILE, INDEX_FILE)):
        return None
    files = TensorFiles.open(folder)
    if not any(files.dtype(name) == compressed.FP8 for name in files.names):
        return None
    require_match(table, files)
    return files


def _stored(folder: Path) -> dict[str, Any]:
    source, _ = open_source(folder, None)
    tensors = sum(len(piece.entries) for piece in source.pieces)
    return {"tensors": tensors, "bytes": sum(piece.nbytes for piece in source.pieces), "quantised": source.kind}


def _stored_fp8(files: TensorFiles) -> dict[str, Any]:
    matrices = sum(files.dtype(name) == compressed.FP8 for name in files.names)
    return {"tensors": len(files.names), "bytes": files.nbytes, "fp8_matrices": matrices}


def _sizes(table: list[Entry], width: int, fp8: TensorFiles | None) -> dict:
    parts: Counter[str] = Counter()
    for entry in table:
        parts[entry.part] += entry.size
    total = sum(parts.values())
    memory = {kind or FULL: sum(predicted_bytes(entry, kind, width) for entry in table) for kind in _kinds(table)}
    if fp8 is not None:
        # In memory a scale has four bytes, as of int8.
        kinds = ["int8" if compressed.is_compressed(entry, fp8) else None for entry in table]
        memory["fp8"] = sum(predicted_bytes(entry, kind, width) for entry, kind in zip(table, kinds, strict=True))
    counts = {"tensors": len(table), "parameters": total, "bytes": total * width}
    return {**counts, "parts": dict(parts.most_common()), "memory": memory}


def _kinds(table: list[Entry]) -> tuple[str | None, ...]:
    """Full weights, and the ways in which they can be quantised."""
    even = all(matrix_shape(entry.path, entry.shape)[-1] % 2 == 0 for entry in table if is_quantizable(entry.path))
    return (None, *(kind for kind in KINDS if even or kind != "int4"))


def _text(config: ModelConfig, found: dict, dtype: str) -> str:
    text, vision = config.text, config.vision
    kinds = Counter(text.layer_types)
    lines = [
        f"text      {text.num_hidden_layers} layers ({', '.join(f'{n} {kind}' for kind, n in kinds.items())}), "
        f"width {text.hidden_size}, vocabulary {text.vocab_size}",
        f"attention {text.num_attention_heads} heads; sliding {text.num_key_value_heads} x {text.head_dim} over "
        f"{text.sliding_window}, full {text.num_global_key_value_heads} x {text.global_head_dim}",
        f"experts   {text.top_k_experts} of {text.num_experts}, {text.moe_intermediate_size} wide, beside a dense "
        f"{text.intermediate_size}",
        f"canvas    {config.canvas_length} tokens; {text.max_position_embeddings} positions",
        "vision    none"
        if vision is None
        else f"vision    {vision.num_hidden_layers} layers, width {vision.hidden_size}, "
        f"patches of {vision.patch_size}, {config.soft_tokens_per_image} soft tokens an image",
        "",
    ]
    width = BYTES[dtype]
    lines += [f"{part:18} {count:>16,} {count * width:>18,} bytes" for part, count in found["parts"].items()]
    lines += [
        f"{'all':18} {found['parameters']:>16,} {found['bytes']:>18,} bytes in {dtype}, {found['tensors']} tensors"
    ]
    memory = ", ".join(f"{kind} {size / 1e9:,.2f} GB" for kind, size in found["memory"].items())
    lines += ["", f"memory    of the weights when loaded, by --quantize: {memory}"]
    if "fp8" in found["memory"]:
        lines += ["          fp8 is as stored, without --quantize; full is with an adapter or on several devices"]
    if "files" in found:
        held = found["files"].get("quantised") or ""
        lines += [
            "",
            f"files     {found['files']['tensors']} tensors, {found['files']['bytes']:,} bytes"
            f"{held and f', matrices in {held}'}: all accounted for",
        ]
    if "fp8_matrices" in found.get("files", {}):
        lines += [f"          {found['files']['fp8_matrices']} matrices in FP8 (compressed-tensors), with their scales"]
    lines += [f"{name} {list(shape)}" for name, shape in found.get("names", {}).items()]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
