"""One conversion: part by part into the new folder, read back and compared bit by bit, then made loadable.

OUT/conversion.json    what is being converted; the same command goes on, another one is refused
OUT/...                the weights, a part at a time: two or three parts are in memory, never the model
OUT/config.json        last: without it nobody takes the folder for a checkpoint
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from dgemma_jax.checkpoint.hub import require_room
from dgemma_jax.checkpoint.names import Entry
from dgemma_jax.checkpoint.quantize import Kind
from dgemma_jax.checkpoint.safetensors import CheckpointError
from dgemma_jax.config import GenerationConfig, ModelConfig
from dgemma_jax.config_json import write_config
from dgemma_jax.training.run_folder import copy_companions
from tools.convert_changes import Changed
from tools.convert_layouts import TARGETS, Piece, Source, open_source

MANIFEST_FILE = "conversion.json"
_DTYPE_KEYS = ("dtype", "torch_dtype")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conversion:
    """What to convert. `to`, `dtype`, `quantize`: None keeps what suits: the other layout, the numbers as they are."""

    source: Path
    out: Path
    to: str | None = None
    dtype: np.dtype | None = None
    quantize: Kind | None = None
    max_shard_bytes: int = 5 * 10**9
    config: Path | None = None


@dataclasses.dataclass(frozen=True)
class Result:
    """What was done. `parts_before`: how many of the parts an earlier run had written."""

    source: str
    out: str
    layouts: tuple[str, str]
    quantised: Kind | None
    tensors: int
    bytes: int
    parts: int
    parts_before: int
    seconds: float


def convert(conversion: Conversion) -> Result:
    """Converts, or goes on with a conversion that was stopped; a finished one is compared again.

    Raises:
        CheckpointError, ConfigError: the source is damaged or does not fit; or what was written differs from it.
        ValueError: `out` holds something else, the disk has no room, or quantised weights cannot be written so.
    """
    started = time.monotonic()
    if ".." in conversion.out.parts:  # "x/.." is a folder, perhaps a full one, before x is there
        conversion = dataclasses.replace(conversion, out=conversion.out.resolve())
    stored, config = open_source(conversion.source, conversion.config)
    to = conversion.to or ("orbax" if stored.layout == "safetensors" else "safetensors")
    _require_possible(conversion, stored, to)
    source = Changed(stored, conversion.dtype, conversion.quantize)
    parts = list(_parts(source.pieces, conversion.max_shard_bytes))
    entries = [[entry for piece in part for entry in piece.entries] for part in parts]
    sizes = [sum(piece.nbytes for piece in part) for part in parts]
    _begin(conversion, _facts(conversion, source, to))
    target = TARGETS[to](conversion.out, entries)
    todo = [number for number in range(len(parts)) if not target.has(number)]
    require_room(conversion.out, sum(sizes[number] for number in todo))
    with _bar("write", sum(sizes), sum(sizes) - sum(sizes[number] for number in todo)) as bar:
        for number in todo:
            target.write(number, list(source.read(parts[number])))
            bar.update(sizes[number])
    target.finish()
    _compare(source, target.reopen(config), parts, conversion)
    _describe(conversion, config)
    names = (str(conversion.source), str(conversion.out), (source.layout, to))
    counts = (sum(map(len, entries)), sum(sizes), len(parts), len(parts) - len(todo))
    return Result(*names, source.kind, *counts, round(time.monotonic() - started, 2))


def _require_possible(conversion: Conversion, source: Source, to: str) -> None:
    wanted = conversion.quantize
    if source.kind is not None and wanted not in (None, source.kind):
        raise ValueError(f"{conversion.source} holds matrices in {source.kind}; {wanted} is made of full ones")
    if to != "orbax" and (kind := source.kind or wanted) is not None:
        raise ValueError(f"{to} has no place for matrices in {kind}: give --to orbax, or convert full ones")


def _parts(pieces: Sequence[Piece], most: int) -> Iterator[list[Piece]]:
    """Consecutive pieces that fit `most` bytes together; a larger one is a part of its own. The same in every run."""
    part: list[Piece] = []
    size = 0
    for piece in pieces:
        if part and size + piece.nbytes > most:
            yield part
            part, size = [], 0
        part.append(piece)
        size += piece.nbytes
    yield part


def _facts(conversion: Conversion, source: Source, to: str) -> dict[str, Any]:
    """What makes two conversions the same."""
    return {
        "source": str(conversion.source.resolve()),
        "config": None if conversion.config is None else str(conversion.config.resolve()),
        "from": source.layout,
        "to": to,
        "dtype": None if conversion.dtype is None else conversion.dtype.name,
        "quantize": conversion.quantize,
        "max_shard_bytes": conversion.max_shard_bytes,
    }


def _begin(conversion: Conversion, facts: dict[str, Any]) -> None:
    """Makes the folder, or recognises it as this conversion's."""
    out = conversion.out
    if conversion.source.resolve() in out.resolve().parents:  # also by way of ".."
        raise ValueError(f"{out} is inside of {conversion.source}, which would change; choose another folder")
    file = out / MANIFEST_FILE
    if file.is_file():
        try:
            before = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{file} cannot be read, so {out} cannot go on: choose another folder: {error}") from error
        names = [name for name in facts if before.get(name) != facts[name]]
        if names:
            lines = [f"\n- {name}: {before.get(name)} there, {facts[name]} now" for name in names]
            raise ValueError(f"{out} holds another conversion; choose another folder or the same:" + "".join(lines))
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is there already, and is no conversion that was stopped; choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def _compare(source: Source, written: Source, parts: Sequence[Sequence[Piece]], conversion: Conversion) -> None:
    """Raises `CheckpointError` unless every bit that was written is the source's."""
    pieces = {entry.name: piece for piece in written.pieces for entry in piece.entries}
    with _bar("verify", sum(piece.nbytes for part in parts for piece in part)) as bar:
        for part in parts:
            wanted = list(dict.fromkeys(pieces[entry.name] for piece in part for entry in piece.entries))
            found = {entry.name: value for entry, value in written.read(wanted)}
            for entry, value in source.read(part):
                if not _same_bits(value, found[entry.name]):
                    raise CheckpointError(_differs(conversion, entry))
                bar.update(found[entry.name].nbytes)


def _same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    # As integers: NaN equals itself, and -0.0 is not 0.0.
    kind = f"u{a.dtype.itemsize}"
    return a.dtype == b.dtype and a.shape == b.shape and bool(np.array_equal(a.view(kind), b.view(kind)))


def _differs(conversion: Conversion, entry: Entry) -> str:
    return (
        f"{conversion.out}: tensor {entry.name} is not what {conversion.source} holds; "
        "a disk or memory may be faulty, or the source was changed: remove the folder and convert again"
    )


def _describe(conversion: Conversion, config: ModelConfig) -> None:
    """Configuration, tokenizer and template; config.json comes last."""
    origin = conversion.config or conversion.source
    if not (origin / "config.json").is_file():
        write_config(config, GenerationConfig(), conversion.out)
        print(f"convert: {origin} has no tokenizer and no chat template: give a folder with --config", file=sys.stderr)
        return
    copy_companions(origin, conversion.out)
    if (origin / "generation_config.json").is_file():
        shutil.copyfile(origin / "generation_config.json", conversion.out / "generation_config.json")
    values = json.loads((origin / "config.json").read_text(encoding="utf-8"))
    if conversion.dtype is not None:
        _state_dtype(values, conversion.dtype.name)
        text = json.dumps(values, indent=2) + "\n"
    else:
        text = (origin / "config.json").read_text(encoding="utf-8")
    (conversion.out / "config.json").write_text(text, encoding="utf-8")


def _state_dtype(values: dict[str, Any], dtype: str) -> None:
    """transformers loads in the dtype that config.json states, here and in its parts."""
    for name, value in values.items():
        if isinstance(value, dict):
            _state_dtype(value, dtype)
        elif name in _DTYPE_KEYS:
            values[name] = dtype


def _bar(what: str, total: int, done: int = 0) -> tqdm:
    return tqdm(desc=what, total=total, initial=done, unit="B", unit_scale=True, file=sys.stderr)
