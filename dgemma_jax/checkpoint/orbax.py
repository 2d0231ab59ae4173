"""Parameters as an Orbax tree, which restores onto any sharding: each device reads its own part of each array.

DIR/orbax/       one Orbax v1 checkpoint: nested by our parameter paths (text, layers, 0, attention, q_HCD), dtype kept
DIR/config.json, tokenizer and template lie beside it, as in the Hugging Face layout

    read(where, arrays) -> numpy, on the host             restore(where, targets) -> jax, where the targets say
    save_part(where, tensors) ... finish(where)           a tree part by part: it appears when it is whole

`where` is the Orbax checkpoint itself: `DIR/orbax`, or the folder of another release.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from orbax.checkpoint import v1 as ocp

from dgemma_jax.checkpoint import names, ocdbt
from dgemma_jax.checkpoint.safetensors import CheckpointError

CHUNK_BYTES = 64 * 2**20
"""Arrays are stored in chunks of this size at most: a device that holds a part of an array reads little else."""

Key = tuple[str, ...]


def key_of(path: names.Path) -> Key:
    """The place of a parameter in the stored tree."""
    return tuple(map(str, path))


def stored(where: Path) -> dict[Key, jax.ShapeDtypeStruct]:
    """Shape and dtype of every array; nothing is read but the metadata.

    Raises:
        CheckpointError: no Orbax checkpoint, one with files missing or cut short, or one without arrays.
    """
    try:
        for manifest in [*where.glob("manifest.ocdbt"), *where.glob("*/manifest.ocdbt")]:
            ocdbt.require_whole(manifest.parent)
        tree = ocp.metadata(where.absolute()).metadata
        leaves = traverse_util.flatten_dict(tree) if isinstance(tree, dict) else {}
        found = {key_of(path): jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in leaves.items()}
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{where} is no Orbax checkpoint that can be read: {_first_line(error)}") from error
    if not found:
        raise CheckpointError(f"{where} is an Orbax checkpoint without arrays")
    return found


def read(where: Path, arrays: Mapping[Key, jax.ShapeDtypeStruct]) -> dict[Key, np.ndarray]:
    """Some of what is `stored`, in host memory. Raises `CheckpointError` for damaged files."""
    # numpy, not jax: what is read to be written again has no business on a device.
    targets = {key: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape) for key, leaf in arrays.items()}
    return {key: np.asarray(value) for key, value in _load(where, targets).items()}


def restore(where: Path, targets: Mapping[names.Path, jax.ShapeDtypeStruct]) -> dict[names.Path, jax.Array]:
    """Some of what is `stored`, in the dtype and on the sharding of its target (without one: whole, on the default
    device). Raises `CheckpointError` for damaged files."""
    found = _load(where, {key_of(path): _placed(target) for path, target in targets.items()})
    return {path: found[key_of(path)] for path in targets}


def saved_parts(where: Path) -> set[Key]:
    """What `save_part` has stored of a tree that is not finished; the remains of parts cut short are removed."""
    partial = _partial(where)
    for remains in where.parent.glob(f"{partial.name}*orbax-checkpoint-tmp*"):
        shutil.rmtree(remains)
    if any(".pending" not in child.name for child in partial.glob("*")):
        shutil.rmtree(partial)  # `finish` was cut short while it moved the parts together
    trees = [json.loads(file.read_text(encoding="utf-8"))["tree_metadata"] for file in partial.glob("*/*/_METADATA")]
    return {tuple(one["key"] for one in leaf["key_metadata"]) for tree in trees for leaf in tree.values()}


def save_part(where: Path, tensors: Mapping[names.Path, np.ndarray]) -> None:
    """Stores some of the tree's arrays, all or none of them. They become readable with `finish`."""
    context = ocp.Context()
    context.array.saving.storage_options.chunk_byte_size = CHUNK_BYTES
    context.array.saving.use_compression = False  # trained weights hardly shrink, and packing them is what takes long
    with context:
        ocp.partial.save(where.absolute(), _nested({key_of(path): value for path, value in tensors.items()}))


def finish(where: Path) -> None:
    """Makes the parts one tree."""
    ocp.partial.finalize(where.absolute())


def _partial(where: Path) -> Path:
    return where.with_name(where.name + ".partial_save")


def _placed(target: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    sharding = target.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(target.shape, target.dtype, sharding=sharding)


def _load(where: Path, targets: Mapping[Key, Any]) -> dict[Key, Any]:
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    try:
        with context:
            tree = ocp.load(where.absolute(), _nested(targets))
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{where} cannot be read: {_first_line(error)}") from error
    return traverse_util.flatten_dict(tree)


def _nested(leaves: Mapping[Key, Any]) -> dict[str, Any]:
    return traverse_util.unflatten_dict(dict(leaves))


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
