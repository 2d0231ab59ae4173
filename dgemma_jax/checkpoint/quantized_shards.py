"""Quantised weights on one device or on a mesh: where each part lies, and how every device gets its own.

A device has some outputs of a matrix, and of these all inputs or a stretch of them. A scale is that of all inputs of an
output, or of a group: so whole rows are read and quantised in host memory, and then cut. The numbers are those of one
device, to the bit.

    target = abstract(path, parameter, kind, mesh)      shapes, types and shardings
    from_files(files, entry, target, kind)              read and quantised
    quantize_parameters(params, kind, mesh)             of parameters that are loaded already
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_dtypes import bfloat16

from dgemma_jax import sharding
from dgemma_jax.checkpoint import compressed
from dgemma_jax.checkpoint.names import Entry, Path
from dgemma_jax.checkpoint.quantize import (
    BITS,
    Kind,
    group_size,
    is_quantizable,
    matrix_shape,
    quantize,
    quantized_arrays,
)
from dgemma_jax.checkpoint.safetensors import TensorFiles
from dgemma_jax.model.quantized import Quantized

Ranges = tuple[tuple[int, int], ...]


class Form(NamedTuple):
    """Shape and dtype of an array."""

    shape: tuple[int, ...]
    dtype: np.dtype


def forms(path: Path, shape: tuple[int, ...], kind: Kind) -> tuple[Form, Form]:
    """Of `Quantized.values` and `Quantized.scale` for a parameter of this shape."""
    *outputs, inputs = matrix_shape(path, shape)
    if kind == "int8":
        return Form((*outputs, inputs), np.dtype("int8")), Form(tuple(outputs), np.dtype("float32"))
    groups = inputs // group_size(inputs)
    return Form((*outputs, inputs // 2), np.dtype("uint8")), Form((*outputs, groups), np.dtype(bfloat16))


def abstract(path: Path, parameter: nnx.Variable, kind: Kind, mesh: Mesh | None) -> Quantized:
    """A quantised parameter with `jax.ShapeDtypeStruct`s for arrays, each with its sharding.

    Inputs are cut in eight bits alone: in four, a byte holds one of the first and one of the second half of them.
    """
    both, axes = forms(path, parameter.shape, kind), parameter.get_metadata("axes")
    if mesh is None:
        alone = sharding.parameter_sharding(parameter, None)
        return Quantized(_struct(both[0], alone), _struct(both[1], alone), BITS[kind])
    outputs = len(both[0].shape) - 1
    # The matrix's inputs may be several axes of the parameter, of which the first is the one that is cut.
    cut = tuple(sharding.spec(axes, parameter.shape, mesh))[: outputs + 1 if kind == "int8" else outputs]
    spec = PartitionSpec(*cut, *(None,) * (outputs + 1 - len(cut)))
    places = [NamedSharding(mesh, PartitionSpec(*spec[: len(form.shape)])) for form in both]
    values, scale = map(_struct, both, places)
    return Quantized(values, scale, BITS[kind], None if "experts" in axes else places[0])


def _struct(form: Form, place: jax.sharding.Sharding) -> Any:
    return jax.ShapeDtypeStruct(*form, sharding=place)


def from_files(files: TensorFiles, entry: Entry, target: Quantized, kind: Kind) -> Quantized:
    """A tensor of a checkpoint, quantised as `target` says: each byte is read once, of what this process has."""
    if not isinstance(target.values.sharding, NamedSharding):
        return quantize(compressed.part(files, entry), entry.path, kind)

    def rows(outputs: Ranges) -> np.ndarray:
        ranges = (*outputs, *((0, size) for size in entry.shape[len(outputs) :]))
        return compressed.part(files, entry, None, ranges)

    return _spread(rows, entry.path, target, kind)


def from_array(path: Path, array: jax.Array, target: Quantized, kind: Kind) -> Quantized:
    """A parameter that is loaded already, quantised where it lies. In a group every process must call it."""
    place = target.values.sharding
    if not isinstance(place, NamedSharding):
        return quantize(np.asarray(array), path, kind)
    outputs = len(target.values.shape) - 1
    rows = NamedSharding(place.mesh, PartitionSpec(*place.spec[:outputs]))
    if not array.sharding.is_equivalent_to(rows, array.ndim):
        array = jax.jit(lambda x: x, out_shardings=rows)(array)
    parts = {_ranges(one.index[:outputs], array.shape): one.data for one in array.addressable_shards}
    return _spread(lambda ranges: np.asarray(parts[ranges]), path, target, kind)


def quantize_parameters(params: nnx.State, kind: Kind, mesh: Mesh | None = None) -> nnx.State:
    """Parameters that are loaded already. Each is given up for its quantised one: `params` are of no more use."""
    flat = []
    for path, leaf in nnx.to_flat_state(params):
        if is_quantizable(path):
            full = leaf[...]
            leaf = leaf.replace(from_array(path, full, abstract(path, leaf, kind, mesh), kind))
            jax.block_until_ready(leaf[...])
            full.delete()  # whoever else holds it: all full matrices and all quantised ones may not fit together
        flat.append((path, leaf))
    return nnx.from_flat_state(flat)


def _spread(rows: Callable[[Ranges], np.ndarray], path: Path, target: Quantized, kind: Kind) -> Quantized:
    """Every device's part. `rows` gives the full numbers of some outputs, with all of their inputs."""
    values_at, scale_at = (_cuts(struct) for struct in (target.values, target.scale))
    count = len(target.values.shape) - 1
    holders: dict[Ranges, list[jax.Device]] = {}
    for device, cuts in values_at.items():
        holders.setdefault(_ranges(cuts[:count], target.values.shape), []).append(device)
    values: list[jax.Array] = []
    scales: list[jax.Array] = []
    for outputs, devices in holders.items():
        whole_values, whole_scale = quantized_arrays(rows(outputs), path, kind)
        for device in devices:
            values.append(jax.device_put(whole_values[(Ellipsis, *values_at[device][count:])], device))
            scales.append(jax.device_put(whole_scale[(Ellipsis, *scale_at[device][count:])], device))
        jax.block_until_ready((values, scales))
    return dataclasses.replace(target, values=_whole(target.values, values), scale=_whole(target.scale, scales))


def _whole(struct: Any, parts: list[jax.Array]) -> jax.Array:
    return jax.make_array_from_single_device_arrays(struct.shape, struct.sharding, parts)


def _cuts(struct: Any) -> dict[jax.Device, Any]:
    """What each device of this process has: a slice of each axis."""
    return dict(struct.sharding.addressable_devices_indices_map(struct.shape))


def _ranges(cuts: tuple[slice, ...], shape: tuple[int, ...]) -> Ranges:
    return tuple(cut.indices(size)[:2] for cut, size in zip(cuts, shape, strict=False))
