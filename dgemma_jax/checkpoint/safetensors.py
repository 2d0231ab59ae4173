"""Reading the tensors of a checkpoint folder, without torch: `model.safetensors`, or several files and their index.

folder -> TensorFiles -> one read-only, memory-mapped array by name (nothing is read from disk before it is used)

`safetensors_writing.py` makes such folders. A file is eight bytes of header length (little-endian), a JSON header
{name: {dtype, shape, data_offsets}}, and the tensors without gaps.
Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from dgemma_jax.checkpoint.host_array import empty, read_into

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
DTYPES: dict[str, np.dtype] = {
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
}
LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 100_000_000  # the limit of the format's own library


class CheckpointError(ValueError):
    """Weights that cannot be read or written."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Tensor:
    """Where a tensor lies: bytes [start, stop) of a file."""

    path: Path
    dtype: np.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


class TensorFiles:
    """The tensors of a folder by name. Arrays stay valid as long as they are referenced; there is nothing to close."""

    def __init__(self, folder: Path, tensors: Mapping[str, _Tensor]) -> None:
        self.folder = folder
        self._tensors = dict(tensors)
        self._maps: dict[Path, np.memmap] = {}

    @classmethod
    def open(cls, folder: Path) -> TensorFiles:
        """Reads the headers of `model.safetensors` or, without it, of the files that the index names.

        Raises CheckpointError, naming the file, for weights that are missing, truncated, malformed, of a dtype that
        is not in `DTYPES`, or at odds with the index.
        """
        folder = Path(folder)
        if (folder / SINGLE_FILE).is_file():
            return cls(folder, _read_header(folder / SINGLE_FILE))
        if (folder / INDEX_FILE).is_file():
            return cls(folder, _read_indexed(folder / INDEX_FILE))
        raise CheckpointError(_nothing_found(folder))

    @classmethod
    def open_file(cls, path: Path) -> TensorFiles:
        """One file of any name. Raises CheckpointError as `open` does."""
        return cls(path.parent, _read_header(path))

    @property
    def names(self) -> tuple[str, ...]:
        """Every tensor's name, sorted."""
        return tuple(sorted(self._tensors))

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors together."""
        return sum(tensor.stop - tensor.start for tensor in self._tensors.values())

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def shape(self, name: str) -> tuple[int, ...]:
        """The tensor's sizes. Raises CheckpointError when there is no such tensor, as `dtype` and `read` do."""
        return self._find(name).shape

    def dtype(self, name: str) -> np.dtype:
        """bfloat16 or float8_e4m3fn (of ml_dtypes), float16 or float32."""
        return self._find(name).dtype

    def nbytes_of(self, name: str) -> int:
        """Bytes of one tensor."""
        tensor = self._find(name)
        return tensor.stop - tensor.start

    def read(self, name: str) -> np.ndarray:
        """A read-only view of the file's pages: no copy, nothing read before it is used."""
        tensor = self._find(name)
        if tensor.path not in self._maps:
            self._maps[tensor.path] = np.memmap(tensor.path, np.uint8, "r")
        return self._maps[tensor.path][tensor.start : tensor.stop].view(tensor.dtype).reshape(tensor.shape)

    def read_part(
        self, name: str, shape: tuple[int, ...], ranges: Sequence[tuple[int, int]], dtype: np.dtype
    ) -> np.ndarray:
        """A part of a tensor, seen in another shape of as many numbers: from start to stop on each axis, in `dtype`.

        Only its bytes are read, into memory of its own: nothing of the file stays mapped. May be called on any thread.
        Raises CheckpointError for a file that has become shorter.
        """
        tensor = self._find(name)
        inner = [start == 0 and stop == size for (start, stop), size in zip(ranges[1:], shape[1:], strict=True)]
        part = empty(tuple(stop - start for start, stop in ranges), dtype)
        if not all(inner):
            whole = np.memmap(tensor.path, tensor.dtype, "r", tensor.start, shape)
            part[...] = whole[tuple(slice(*one) for one in ranges)]
            return part
        # One range of bytes, as is whatever is cut on the first axis alone.
        offset = tensor.start + (ranges[0][0] * math.prod(shape[1:]) * tensor.dtype.itemsize if shape else 0)
        self._read_bytes(name, offset, part)
        return part

    def read_into(self, name: str, out: np.ndarray) -> None:
        """All of a tensor into an array of as many numbers, in its dtype. Otherwise as `read_part`."""
        self._read_bytes(name, self._find(name).start, out)

    def _read_bytes(self, name: str, offset: int, out: np.ndarray) -> None:
        tensor = self._find(name)
        if not read_into(out, tensor.path, offset, tensor.dtype):
            raise CheckpointError(f"{tensor.path} ends within tensor {name}")

    def _find(self, name: str) -> _Tensor:
        if name not in self._tensors:
            raise CheckpointError(f"{self.folder} has no tensor {name} among its {len(self._tensors)}")
        return self._tensors[name]


def _nothing_found(folder: Path) -> str:
    if not folder.is_dir():
        return f"checkpoint folder {folder} {'is not a folder' if folder.exists() else 'does not exist'}"
    others = sorted(path.name for path in folder.iterdir() if path.suffix in (".safetensors", ".bin", ".gguf", ".pt"))
    message = f"{folder} has no weights: looked for {SINGLE_FILE} and {INDEX_FILE}"
    if any(name.endswith(".safetensors") for name in others):
        return f"{message}; several files need the index, found {', '.join(others)}"
    if others:
        return f"{message}; {', '.join(others)} cannot be read, only safetensors"
    return message


def _read_json(path: Path, content: bytes, what: str) -> dict[str, Any]:
    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) != len(pairs):
            raise ValueError("a name appears twice")
        return dict(pairs)

    try:
        value = json.loads(content.decode("utf-8"), object_pairs_hook=no_duplicates)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: {what} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: {what} is not a JSON object")
    return value


def _read_indexed(index_path: Path) -> dict[str, _Tensor]:
    """The tensors of every file that the index names; index and files must agree on which file holds which tensor."""
    index = _read_json(index_path, index_path.read_bytes(), "the index")
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f'{index_path}: wanted "weight_map", an object of tensor names and their files')
    for file_name in weight_map.values():
        if not isinstance(file_name, str) or Path(file_name).name != file_name:
            raise CheckpointError(f"{index_path}: {file_name!r} is not the name of a file next to the index")
    tensors: dict[str, _Tensor] = {}
    for file_name in sorted(set(weight_map.values())):
        path = index_path.parent / file_name
        if not path.is_file():
            raise CheckpointError(f"{index_path} names {file_name}, which is not in the folder")
        for name, tensor in _read_header(path).items():
            if name in tensors:
                raise CheckpointError(f"{path}: tensor {name} is in {tensors[name].path.name} too")
            if name not in weight_map:
                raise CheckpointError(f"{path} has a tensor that {index_path.name} does not name: {name}")
            tensors[name] = tensor
    for name, file_name in weight_map.items():
        if name not in tensors or tensors[name].path.name != file_name:
            raise CheckpointError(f"{index_path} names tensor {name} in {file_name}, which does not have it")
    return tensors


def _read_header(path: Path) -> dict[str, _Tensor]:
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(LENGTH_BYTES)
        header_bytes = int.from_bytes(start, "little")
        data_start = LENGTH_BYTES + header_bytes
        if len(start) < LENGTH_BYTES or (header_bytes <= _MAX_HEADER_BYTES and data_start > size):
            raise CheckpointError(f"{path} is truncated: {size} bytes do not hold the header")
        if header_bytes > _MAX_HEADER_BYTES:
            raise CheckpointError(f"{path} is not a safetensors file: its header would have {header_bytes} bytes")
        header = file.read(header_bytes)
    if not header.startswith(b"{"):
        raise CheckpointError(f"{path} is not a safetensors file: its header is not a JSON object")
    entries = _read_json(path, header, "the header")
    _check_metadata(path, entries.pop("__metadata__", {}))
    tensors = {name: _read_entry(path, name, entry, data_start) for name, entry in entries.items()}
    _check_layout(path, tensors, data_start, size)
    return tensors


def _check_metadata(path: Path, metadata: object) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"{path}: the header's __metadata__ is not an object of strings")


def _sizes(value: object, count: int | None = None) -> tuple[int, ...] | None:
    """A list of (`count`) whole numbers from zero; None when `value` is something else."""
    if not isinstance(value, list) or not all(type(one) is int and one >= 0 for one in value):
        return None
    return tuple(value) if count is None or len(value) == count else None


def _read_entry(path: Path, name: str, entry: object, data_start: int) -> _Tensor:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{path}: tensor {name} is not described by dtype, shape and data_offsets")
    shape, offsets = _sizes(entry["shape"]), _sizes(entry["data_offsets"], count=2)
    if shape is None or offsets is None:
        raise CheckpointError(f"{path}: shape and data_offsets of tensor {name} must be whole numbers")
    if not isinstance(entry["dtype"], str) or entry["dtype"] not in DTYPES:
        raise CheckpointError(f"{path}: tensor {name} has dtype {entry['dtype']}; supported are {', '.join(DTYPES)}")
    dtype = DTYPES[entry["dtype"]]
    wanted = math.prod(shape) * dtype.itemsize
    if offsets[1] - offsets[0] != wanted:
        raise CheckpointError(f"{path}: tensor {name} needs {wanted} bytes, but its data_offsets are {list(offsets)}")
    return _Tensor(path=path, dtype=dtype, shape=shape, start=data_start + offsets[0], stop=data_start + offsets[1])


def _check_layout(path: Path, tensors: Mapping[str, _Tensor], data_start: int, size: int) -> None:
    """The tensors must fill the file from the header to the end, without gaps or overlaps."""
    position = data_start
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop)):
        if tensor.start != position:
            relation = "leaves a gap before it" if tensor.start > position else "overlaps the one before it"
            raise CheckpointError(f"{path}: tensor {name} {relation}: starts at {tensor.start}, wanted {position}")
        position = tensor.stop
    if position > size:
        raise CheckpointError(f"{path} is truncated: its header describes {position} bytes, the file has {size}")
    if position < size:
        raise CheckpointError(f"{path}: {size - position} bytes after the last tensor belong to none")
