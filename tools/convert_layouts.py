"""The layouts that `tools.convert` reads and writes, each as parameters in our own shapes.

Source   pieces: what is read at once;  read(pieces) -> (entry, array), ...
Target   write(part, tensors), part by part, in any number of runs;  finish();  reopen() -> Source
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from dgemma_jax.checkpoint import compressed, orbax
from dgemma_jax.checkpoint.deepmind import DeepMindTree, Leaf
from dgemma_jax.checkpoint.load import ORBAX_FOLDER, require_match
from dgemma_jax.checkpoint.match import require_shapes
from dgemma_jax.checkpoint.names import Entry, entries
from dgemma_jax.checkpoint.orbax_parameters import kind_of, stored_entries
from dgemma_jax.checkpoint.quantize import Kind, is_quantizable
from dgemma_jax.checkpoint.safetensors import INDEX_FILE, SINGLE_FILE, CheckpointError, TensorFiles
from dgemma_jax.checkpoint.safetensors_writing import write_index, write_tensors
from dgemma_jax.config import PRESETS, ModelConfig
from dgemma_jax.config_json import read_model_config

Tensors = Sequence[tuple[Entry, np.ndarray]]


class Piece(NamedTuple):
    """What cannot be read by halves: one tensor, or a leaf with several parameters in it."""

    entries: tuple[Entry, ...]
    dtypes: tuple[np.dtype, ...]

    @property
    def nbytes(self) -> int:
        return sum(entry.size * dtype.itemsize for entry, dtype in zip(self.entries, self.dtypes, strict=True))


class Source(Protocol):
    """Weights that fit a configuration. `kind`: how the matrices are quantised; None where they are full."""

    layout: str
    kind: Kind | None
    pieces: list[Piece]

    def read(self, pieces: Sequence[Piece]) -> Iterator[tuple[Entry, np.ndarray]]:
        """The parameters of some pieces, in our shapes and as they are stored."""


class Target(Protocol):
    """Weights being written in parts, which are told apart by their number."""

    def has(self, number: int) -> bool:
        """Whether an earlier run wrote this part."""

    def write(self, number: int, tensors: Tensors) -> None:
        """Writes a part: all of it or nothing."""

    def finish(self) -> None:
        """Makes the parts one checkpoint."""

    def reopen(self, config: ModelConfig) -> Source:
        """What has been written."""


class SafetensorsSource:
    """Files in the published layout."""

    layout = "safetensors"
    kind: Kind | None = None

    def __init__(self, folder: Path, config: ModelConfig) -> None:
        self._files = TensorFiles.open(folder)
        table = list(entries(config))
        require_match(table, self._files)
        if any(compressed.is_compressed(entry, self._files) for entry in table):
            raise CheckpointError(f"{folder} holds FP8 weights, which are loaded as they are and not converted")
        self.pieces = [Piece((entry,), (self._files.dtype(entry.name),)) for entry in table]

    def read(self, pieces: Sequence[Piece]) -> Iterator[tuple[Entry, np.ndarray]]:
        for piece in pieces:
            for entry in piece.entries:
                yield entry, self._files.read(entry.name).reshape(entry.shape)


class OrbaxSource:
    """Our own tree."""

    layout = "orbax"

    def __init__(self, folder: Path, config: ModelConfig) -> None:
        self._where = folder / ORBAX_FOLDER
        self._stored = orbax.stored(self._where)
        self.kind = kind_of(self._stored)
        groups = [self._arrays(entry) for entry in entries(config)]
        wanted = {".".join(orbax.key_of(one.path)): one.shape for group in groups for one in group}
        require_shapes(self._where, wanted, {".".join(key): tuple(leaf.shape) for key, leaf in self._stored.items()})
        self.pieces = [
            Piece(group, tuple(np.dtype(self._stored[orbax.key_of(one.path)].dtype) for one in group))
            for group in groups
        ]

    def _arrays(self, entry: Entry) -> tuple[Entry, ...]:
        return (entry,) if self.kind is None or not is_quantizable(entry.path) else stored_entries(entry, self.kind)

    def read(self, pieces: Sequence[Piece]) -> Iterator[tuple[Entry, np.ndarray]]:
        keys = {orbax.key_of(entry.path): entry for piece in pieces for entry in piece.entries}
        found = orbax.read(self._where, {key: self._stored[key] for key in keys})
        return ((entry, found[key]) for key, entry in keys.items())


class DeepMindSource:
    """The tree that DeepMind releases."""

    layout = "deepmind"
    kind: Kind | None = None

    def __init__(self, folder: Path, config: ModelConfig) -> None:
        self._tree = DeepMindTree.open(folder, config)
        self._leaves: dict[Piece, Leaf] = {}
        for leaf in self._tree.leaves:
            held = tuple(part.entry for part in leaf.parts)
            self._leaves[Piece(held, (self._tree.dtype(leaf),) * len(held))] = leaf
        self.pieces = list(self._leaves)

    def read(self, pieces: Sequence[Piece]) -> Iterator[tuple[Entry, np.ndarray]]:
        return self._tree.read([self._leaves[piece] for piece in pieces])


class SafetensorsTarget:
    """Files in the published layout, one a part."""

    def __init__(self, out: Path, parts: Sequence[Sequence[Entry]]) -> None:
        self._out = out
        self._names = [{entry.name for entry in part} for part in parts]
        count = len(parts)
        self._files = [f"model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]
        if count == 1:
            self._files = [SINGLE_FILE]

    def has(self, number: int) -> bool:
        path = self._out / self._files[number]
        return path.is_file() and set(TensorFiles.open_file(path).names) == self._names[number]

    def write(self, number: int, tensors: Tensors) -> None:
        published = {entry.name: value.reshape(entry.published_shape) for entry, value in tensors}
        write_tensors(self._out / self._files[number], published, {"format": "pt"})

    def finish(self) -> None:
        if len(self._files) > 1:
            total = sum(TensorFiles.open_file(self._out / file).nbytes for file in self._files)
            write_index(self._out, dict(zip(self._files, self._names, strict=True)), total)

    def reopen(self, config: ModelConfig) -> Source:
        return SafetensorsSource(self._out, config)


class OrbaxTarget:
    """Our own tree, a part at a time."""

    def __init__(self, out: Path, parts: Sequence[Sequence[Entry]]) -> None:
        self._out, self._where = out, out / ORBAX_FOLDER
        self._keys = [{orbax.key_of(entry.path) for entry in part} for part in parts]
        self._saved = set().union(*self._keys) if self._where.is_dir() else orbax.saved_parts(self._where)

    def has(self, number: int) -> bool:
        return self._keys[number] <= self._saved

    def write(self, number: int, tensors: Tensors) -> None:
        orbax.save_part(self._where, {entry.path: value for entry, value in tensors})

    def finish(self) -> None:
        if not self._where.is_dir():
            orbax.finish(self._where)

    def reopen(self, config: ModelConfig) -> Source:
        return OrbaxSource(self._out, config)


MakeTarget = Callable[[Path, Sequence[Sequence[Entry]]], Target]
TARGETS: dict[str, MakeTarget] = {
    "safetensors": SafetensorsTarget,
    "orbax": OrbaxTarget,
}


def open_source(folder: Path, described_by: Path | None) -> tuple[Source, ModelConfig]:
    """The weights of a folder and their configuration.

    Args:
        folder: any of the layouts.
        described_by: folder with the config.json; None: the folder itself, and for DeepMind's tree, which has none,
            the published configuration.

    Raises:
        CheckpointError, ConfigError: no layout that is known, damaged, or not of this configuration.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder")
    if is_deepmind(folder):
        config = read_model_config(described_by) if described_by else PRESETS["26b-a4b"]
        return DeepMindSource(folder, config), config
    config = read_model_config(described_by or folder)
    is_orbax = (folder / ORBAX_FOLDER).is_dir()
    return (OrbaxSource if is_orbax else SafetensorsSource)(folder, config), config


def is_deepmind(folder: Path) -> bool:
    """Whether the folder is an Orbax tree itself, and no checkpoint folder that holds one."""
    ours = any((folder / name).exists() for name in (SINGLE_FILE, INDEX_FILE, ORBAX_FOLDER))
    return not ours and any((folder / name).exists() for name in ("_METADATA", "_CHECKPOINT_METADATA"))
