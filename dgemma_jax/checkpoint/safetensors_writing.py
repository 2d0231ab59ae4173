"""Writing tensors as safetensors, one file or several with their index; see `safetensors.py` for the format.

(name, array), ... -> write_sharded -> folder
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dgemma_jax.checkpoint.safetensors import DTYPES, INDEX_FILE, LENGTH_BYTES, SINGLE_FILE, CheckpointError

_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> None:
    """Writes one file, which appears whole or not at all.

    Raises CheckpointError for a dtype that is not in `DTYPES`.
    """
    # Wide types first: every tensor is then aligned to its own size, as the format's own library has it.
    ordered = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for name in ordered:
        tensor = tensors[name]
        if tensor.dtype not in _DTYPE_NAMES:
            raise CheckpointError(f"tensor {name} has dtype {tensor.dtype}; supported are {', '.join(DTYPES)}")
        offsets = [position, position + tensor.nbytes]
        header[name] = {"dtype": _DTYPE_NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
        position += tensor.nbytes
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % LENGTH_BYTES)
    partial = Path(path).with_name(Path(path).name + ".partial")
    try:
        with partial.open("wb") as file:
            file.write(len(encoded).to_bytes(LENGTH_BYTES, "little") + encoded)
            for name in ordered:
                np.ascontiguousarray(tensors[name]).tofile(file)
        os.replace(partial, path)  # a reader that maps the old file keeps it
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_sharded(folder: Path, tensors: Iterable[tuple[str, np.ndarray]], max_shard_bytes: int = 5 * 10**9) -> int:
    """Writes tensors as they come: `model.safetensors` or, if they do not fit one shard, several files and the index.

    Holds at most `max_shard_bytes` and one tensor in memory. Returns the bytes of all tensors. When a tensor cannot be
    made or written, nothing is left behind. Raises CheckpointError for a folder that already has weights, for a name
    that comes twice, and when nothing comes.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    present = [path.name for path in folder.glob("*.safetensors")] + [p.name for p in folder.glob(INDEX_FILE)]
    if present:
        raise CheckpointError(f"{folder} already has weights: {', '.join(sorted(present))}; write to an empty folder")
    shards: list[Path] = []
    names: list[list[str]] = []
    total = 0
    try:
        for shard in _shards(tensors, max_shard_bytes):
            shards.append(folder / f"model-{len(shards) + 1:05}.partial")
            names.append(sorted(shard))
            write_tensors(shards[-1], shard, {"format": "pt"})
            total += sum(tensor.nbytes for tensor in shard.values())
        _publish(folder, shards, names, total)
    finally:
        for path in shards:
            path.unlink(missing_ok=True)
    return total


def _shards(tensors: Iterable[tuple[str, np.ndarray]], max_shard_bytes: int) -> Iterable[dict[str, np.ndarray]]:
    """Consecutive tensors that fit one shard together; a tensor larger than a shard gets its own."""
    seen: set[str] = set()
    shard: dict[str, np.ndarray] = {}
    for name, tensor in tensors:
        if name in seen:
            raise CheckpointError(f"tensor {name} comes twice")
        seen.add(name)
        if shard and sum(one.nbytes for one in shard.values()) + tensor.nbytes > max_shard_bytes:
            yield shard
            shard = {}
        shard[name] = tensor
    if not shard:
        raise CheckpointError("no tensors to write")
    yield shard


def _publish(folder: Path, shards: list[Path], names: list[list[str]], total: int) -> None:
    """Gives the finished shards the names that readers look for; the index comes last."""
    if len(shards) == 1:
        shards[0].rename(folder / SINGLE_FILE)
        return
    files: dict[str, list[str]] = {}
    for number, (path, shard_names) in enumerate(zip(shards, names, strict=True), start=1):
        file_name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        path.rename(folder / file_name)
        files[file_name] = shard_names
    write_index(folder, files, total)


def write_index(folder: Path, files: Mapping[str, Iterable[str]], total: int) -> None:
    """Writes which file holds which tensors, and the bytes of all of them: readers then take the files for one."""
    weight_map = {name: file_name for file_name, names in files.items() for name in names}
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
