"""Published FP8 checkpoints (compressed-tensors): matrices of 8-bit floats, each output channel with a scale.

    model.decoder.layers.0.self_attn.q_proj.weight        F8_E4M3 [outputs, inputs]
    model.decoder.layers.0.self_attn.q_proj.weight_scale  BF16 [outputs, 1]; the number is weight * weight_scale
    model.decoder.layers.0.experts.7.gate_proj.weight     each expert apart, and its gate apart from its up

The matrices are those that we quantise too. Which of them are stored so, the files say; the rest is as in a full
checkpoint. Source: compressed-tensors, format `float-quantized`, strategy `channel`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import ml_dtypes
import numpy as np

from dgemma_jax.checkpoint.host_array import empty
from dgemma_jax.checkpoint.names import Entry
from dgemma_jax.checkpoint.quantize import is_quantizable, matrix_shape
from dgemma_jax.checkpoint.safetensors import CheckpointError, TensorFiles

FP8 = np.dtype(ml_dtypes.float8_e4m3fn)
_FLOAT32, _BFLOAT16 = np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16)
_EXPERT_MATRICES = {"gate_up_EFD": ("gate_proj", "up_proj"), "down_EDF": ("down_proj",)}
_WIDENED = 2**20  # numbers at a time


class Linear(NamedTuple):
    """One stored matrix: `name` is that of its weight."""

    name: str
    shape: tuple[int, int]

    @property
    def scale(self) -> str:
        return f"{self.name}_scale"


def linears(entry: Entry) -> list[Linear]:
    """The matrices that make a parameter, in the order of its outputs; of experts one after the other."""
    *outputs, inputs = matrix_shape(entry.path, entry.shape)
    names = _EXPERT_MATRICES.get(str(entry.path[-1]))
    if names is None:
        return [Linear(entry.name, (math.prod(outputs), inputs))]
    folder, (experts, rows) = entry.name.rpartition(".")[0], outputs
    return [
        Linear(f"{folder}.{expert}.{name}.weight", (rows // len(names), inputs))
        for expert in range(experts)
        for name in names
    ]


def is_compressed(entry: Entry, files: TensorFiles) -> bool:
    """Whether a parameter is stored as 8-bit floats with scales."""
    if not is_quantizable(entry.path):
        return False
    if entry.name in files:
        return files.dtype(entry.name) == FP8
    return any(linear.name in files for linear in linears(entry))


def stored_shapes(entry: Entry, files: TensorFiles) -> dict[str, tuple[int, ...]]:
    """The tensors that a parameter should be stored as, and their shapes."""
    if not is_compressed(entry, files):
        return {entry.name: entry.published_shape}
    found: dict[str, tuple[int, ...]] = {}
    for linear in linears(entry):
        found |= {linear.name: linear.shape, linear.scale: (linear.shape[0], 1)}
    return found


def stored_bytes(entry: Entry, files: TensorFiles) -> int:
    """Bytes of a parameter in the files, scales included."""
    return sum(files.nbytes_of(name) for name in stored_shapes(entry, files))


def part(
    files: TensorFiles, entry: Entry, dtype: np.dtype | None = None, ranges: Sequence[tuple[int, int]] | None = None
) -> np.ndarray:
    """A parameter in a full type, whole or from start to stop on each axis, however it is stored.

    `dtype` None is that of the file, for FP8 bfloat16. Raises CheckpointError for a file that has become shorter.
    """
    cut = [(0, size) for size in entry.shape] if ranges is None else ranges
    if is_compressed(entry, files):
        return _widened(files, entry, cut, _BFLOAT16 if dtype is None else dtype)
    return files.read_part(entry.name, entry.shape, cut, files.dtype(entry.name) if dtype is None else dtype)


def require_dtypes(table: Sequence[Entry], files: TensorFiles) -> None:
    """Raises `CheckpointError` listing the tensors that are FP8 and should not be, or the other way round."""
    weights = {linear.name for entry in table if is_compressed(entry, files) for linear in linears(entry)}
    lines = [
        f"  ! {name}: wanted {'F8_E4M3' if name in weights else 'a wider type'}, found {files.dtype(name)}"
        for name in files.names
        if (files.dtype(name) == FP8) != (name in weights)
    ]
    if lines:
        raise CheckpointError(f"{files.folder}: FP8 must be the matrices that have scales:\n" + "\n".join(lines))


def read(files: TensorFiles, entry: Entry, experts: tuple[int, int] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """A parameter as it is stored, or some of its experts: float8_e4m3fn [outputs..., inputs], float32 [outputs...]."""
    *outputs, inputs = matrix_shape(entry.path, entry.shape)
    matrices = linears(entry)
    if experts is not None:
        each = len(matrices) // outputs[0]
        matrices = matrices[experts[0] * each : experts[1] * each]
        outputs[0] = experts[1] - experts[0]
    values, scale = empty((*outputs, inputs), FP8), empty(tuple(outputs), _FLOAT32)
    rows, scales = values.reshape(-1, inputs), scale.reshape(-1)
    start = 0
    for linear in matrices:
        stop = start + linear.shape[0]
        files.read_into(linear.name, rows[start:stop])
        files.read_into(linear.scale, scales[start:stop])
        start = stop
    return values, scale


def _widened(files: TensorFiles, entry: Entry, ranges: Sequence[tuple[int, int]], dtype: np.dtype) -> np.ndarray:
    # Rounded once, to `dtype`: the product of an 8-bit float and a bfloat16 scale is exact in float32.
    of_experts = str(entry.path[-1]) in _EXPERT_MATRICES
    values, scale = read(files, entry, ranges[0] if of_experts else None)
    whole = empty(values.shape, dtype)
    rows, scales, full = values.reshape(-1, values.shape[-1]), scale.reshape(-1, 1), whole.reshape(-1, values.shape[-1])
    step = max(1, _WIDENED // rows.shape[1])
    for start in range(0, len(rows), step):
        some = slice(start, start + step)
        full[some] = rows[some].astype(np.float32) * scales[some]
    if of_experts:
        ranges = [(0, len(whole)), *ranges[1:]]
    shaped = whole.reshape(len(whole) if of_experts else entry.shape[0], *entry.shape[1:])
    found = shaped[tuple(slice(*one) for one in ranges)]
    return found if found.size == whole.size else np.ascontiguousarray(found)
