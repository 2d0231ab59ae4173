"""From full weights to quantised ones, and how much memory they take.

Quantised are the matrices of experts, attention and MLP. Norms, router, embedding, self-conditioning and the vision
tower stay: they are small, or decide much.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from dgemma_jax.checkpoint.host_array import empty
from dgemma_jax.checkpoint.names import Entry, Path
from dgemma_jax.model.quantized import Quantized, widened

Kind = Literal["int8", "int4"]
KINDS: tuple[str, ...] = get_args(Kind)
BITS: dict[Kind, int] = {"int8": 8, "int4": 4}
LARGEST_GROUP = 64
"""Inputs that share a scale in four bits, at most: the scale is then a quarter of a bit a number."""
PART_NUMBERS = 2**20
"""Numbers that are in float32 at a time."""
_QUANTIZED = {"attention": ("q_HCD", "k_KCD", "v_KCD", "o_DHC"), "mlp": ("gate_FD", "up_FD", "down_DF")}
_QUANTIZED["experts"] = ("gate_up_EFD", "down_EDF")


def is_quantizable(path: Path) -> bool:
    """Whether a parameter is one of those that are quantised."""
    return path[:2] == ("text", "layers") and path[-1] in _QUANTIZED.get(str(path[-2]), ())


def group_size(inputs: int) -> int:
    """Inputs of a group: the largest power of two in half of them, up to `LARGEST_GROUP`, as kernels read by those.

    Raises:
        ValueError: an odd number of inputs.
    """
    if inputs % 2:
        raise ValueError(f"a matrix with {inputs} inputs cannot be quantised to int4: the number must be even")
    return math.gcd(inputs // 2, LARGEST_GROUP)


def matrix_shape(path: Path, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Outputs, and inputs as one axis. Only the attention's output matrix has inputs on two."""
    return (*shape[:-2], shape[-2] * shape[-1]) if path[-1] == "o_DHC" else shape


def predicted_bytes(entry: Entry, kind: str | None, width: int) -> int:
    """Memory of a parameter; `width` bytes a number where it stays full."""
    if kind is None or not is_quantizable(entry.path):
        return entry.size * width
    *outputs, inputs = matrix_shape(entry.path, entry.shape)
    channels = math.prod(outputs)
    if kind == "int8":
        return channels * (inputs + 4)
    return channels * (inputs // 2 + 2 * (inputs // group_size(inputs)))


def quantize(value: np.ndarray, path: Path, kind: Kind) -> Quantized:
    """A parameter's array, on the default device."""
    values, scale = map(jax.device_put, quantized_arrays(value, path, kind))
    return Quantized(values, scale, BITS[kind])


def quantized_arrays(value: np.ndarray, path: Path, kind: Kind) -> tuple[np.ndarray, np.ndarray]:
    """`Quantized.values` and `Quantized.scale` of some of a parameter's outputs with all of their inputs, in host
    memory. Holds a few of the outputs in float32 at a time."""
    matrix = np.asarray(value).reshape(matrix_shape(path, value.shape))
    convert: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]] = _int8 if kind == "int8" else _int4
    values, scale = (array.reshape(*matrix.shape[:-1], -1) for array in _converted(matrix, convert))
    return values, scale[..., 0] if kind == "int8" else scale


def _converted(
    matrix: np.ndarray, convert: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
) -> tuple[np.ndarray, ...]:
    """What `convert` makes of all rows, some at a time, each written once and where a device can take it."""
    rows = matrix.reshape(-1, matrix.shape[-1])
    step = max(1, PART_NUMBERS // rows.shape[1])
    like = convert(rows[:1].astype(np.float32))
    whole = tuple(empty((len(rows), one.shape[1]), one.dtype) for one in like)
    for start in range(0, len(rows), step):
        for array, part in zip(whole, convert(rows[start : start + step].astype(np.float32)), strict=True):
            array[start : start + step] = part
    return whole


def _int8(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scale = np.abs(rows).max(axis=-1, keepdims=True) / 127
    scale[scale == 0] = 1
    return np.rint(rows / scale).astype(np.int8), scale


def _int4(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    size = group_size(rows.shape[-1])
    grouped = rows.reshape(len(rows), -1, size)
    # Rounded first, so that the numbers fit the scale that is stored.
    scale = (np.abs(grouped).max(axis=-1, keepdims=True) / 7).astype(ml_dtypes.bfloat16)
    scale[scale == 0] = 1
    numbers = np.clip(np.rint(grouped / scale.astype(np.float32)), -7, 7).astype(np.int8) + 8
    low, high = np.split(numbers.astype(np.uint8).reshape(len(rows), -1), 2, axis=-1)
    return low | high << 4, scale[..., 0]


def full(weight: Quantized, shape: tuple[int, ...]) -> np.ndarray:
    """What a quantised weight stands for, float32: for tests and measurements of the error."""
    numbers = jnp.concatenate(widened(weight, jnp.dtype("float32")), axis=-1)
    return np.asarray(numbers * weight.scale[..., None] if weight.bits == 8 else numbers).reshape(shape)
