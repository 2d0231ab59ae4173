"""The parameters of a model from our Orbax tree: full or quantised as they are stored, each part to its devices.

A quantised tree has two arrays where the other has one: text/layers/0/attention/q_HCD/values and .../scale.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from dgemma_jax import sharding
from dgemma_jax.checkpoint import names, orbax
from dgemma_jax.checkpoint.match import require_shapes
from dgemma_jax.checkpoint.quantize import Kind, is_quantizable
from dgemma_jax.checkpoint.quantized_shards import abstract, forms, from_array
from dgemma_jax.checkpoint.safetensors import CheckpointError
from dgemma_jax.model.quantized import Quantized

PARTS = ("values", "scale")
_KINDS: dict[str, Kind] = {"int8": "int8", "uint8": "int4"}

Stored = Mapping[orbax.Key, jax.ShapeDtypeStruct]
Flat = Sequence[tuple[names.Path, nnx.Variable]]
Targets = dict[names.Path, jax.ShapeDtypeStruct]
Arrays = dict[names.Path, jax.Array | Quantized]


def kind_of(stored: Stored) -> Kind | None:
    """How the matrices of a stored tree are quantised; None where they are full."""
    found = {_KINDS.get(np.dtype(leaf.dtype).name) for key, leaf in stored.items() if key[-1] == PARTS[0]}
    return found.pop() if len(found) == 1 else None


def stored_entries(entry: names.Entry, kind: Kind) -> tuple[names.Entry, ...]:
    """The arrays that a quantised tree has of a matrix: `PARTS`."""
    return tuple(
        entry._replace(
            path=(*entry.path, part), name=f"{entry.name}.{part}", shape=form.shape, published_shape=form.shape
        )
        for part, form in zip(PARTS, forms(entry.path, entry.shape, kind), strict=True)
    )


def load_orbax(where: Path, flat: Flat, dtype: jnp.dtype, quantize: Kind | None, mesh: Mesh | None) -> Arrays:
    """Every parameter, where `sharding` wants it.

    Raises:
        CheckpointError: missing, unexpected or misshapen arrays, all of them by name; damaged files; or matrices that
            are quantised otherwise than they are wanted.
    """
    stored = orbax.stored(where)
    held = kind_of(stored)
    if held not in (None, quantize):
        raise CheckpointError(f"{where} holds matrices in {held}, wanted {quantize or 'full ones'}")
    full = {
        path: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=sharding.parameter_sharding(leaf, mesh))
        for path, leaf in flat
    }
    if quantize is None:
        _require_match(where, full, stored)
        return dict(orbax.restore(where, full))
    matrices = {path: abstract(path, leaf, quantize, mesh) for path, leaf in flat if is_quantizable(path)}
    if held is None:
        return _read_and_quantize(where, full, matrices, quantize, stored)
    rest = {path: full[path] for path in full.keys() - matrices.keys()}
    parts = {(*path, which): getattr(target, which) for path, target in matrices.items() for which in PARTS}
    _require_match(where, rest | parts, stored)
    found = orbax.restore(where, rest | parts)
    quantized: Arrays = {
        path: dataclasses.replace(target, values=found.pop((*path, "values")), scale=found.pop((*path, "scale")))
        for path, target in matrices.items()
    }
    return {**found, **quantized}


def _read_and_quantize(
    where: Path, full: Targets, matrices: Mapping[names.Path, Quantized], kind: Kind, stored: Stored
) -> Arrays:
    """A layer at a time: more of the full matrices is never there. They are read as they are stored."""
    _require_match(where, full, stored)
    read: Arrays = dict(orbax.restore(where, {path: full[path] for path in full.keys() - matrices.keys()}))
    for _, layer in itertools.groupby(matrices, key=lambda path: path[2]):
        targets = {path: full[path].update(dtype=stored[orbax.key_of(path)].dtype) for path in layer}
        for path, array in orbax.restore(where, targets).items():
            read[path] = from_array(path, array, matrices[path], kind)
    return read


def _require_match(where: Path, wanted: Targets, stored: Stored) -> None:
    """Raises `CheckpointError` with all that is missing, unexpected or of another shape."""
    shapes = {".".join(orbax.key_of(path)): tuple(target.shape) for path, target in wanted.items()}
    require_shapes(where, shapes, {".".join(key): tuple(leaf.shape) for key, leaf in stored.items()})
