"""From a checkpoint folder to parameters: every tensor accounted for, then read one by one."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dgemma_jax.checkpoint.names import Entry, abstract_model, entries
from dgemma_jax.checkpoint.safetensors import CheckpointError, TensorFiles
from dgemma_jax.config import ModelConfig


def require_match(wanted: list[Entry], files: TensorFiles) -> None:
    """Raises `CheckpointError` listing all that is missing, unexpected or of another shape, by name.

    A separate `lm_head.weight` is accepted where it repeats the embedding: the head is tied to it.
    """
    shapes = {entry.name: entry.published_shape for entry in wanted}
    found = set(files.names) - _tied_copies(files)
    lines = [
        f"  - {name} {shape} (model has it, checkpoint does not)" for name, shape in shapes.items() if name not in found
    ]
    lines += [f"  + {name} (checkpoint has it, model does not)" for name in sorted(found - shapes.keys())]
    lines += [
        f"  ! {name}: wanted {shape}, found {files.shape(name)}"
        for name, shape in shapes.items()
        if name in found and files.shape(name) != shape
    ]
    if lines:
        raise CheckpointError(f"{files.folder}: checkpoint does not fit the model:\n" + "\n".join(sorted(lines)))


def _tied_copies(files: TensorFiles) -> set[str]:
    head, embedding = "lm_head.weight", "model.decoder.embed_tokens.weight"
    both = head in files and embedding in files and files.shape(head) == files.shape(embedding)
    return {head} if both and np.array_equal(files.read(head), files.read(embedding)) else set()


def load_parameters(
    folder: Path, config: ModelConfig, dtype: jnp.dtype, backend: str
) -> tuple[nnx.GraphDef, nnx.State]:
    """Structure and parameters of the model, in `dtype`, on the default device.

    Raises `CheckpointError` for files that are damaged or do not fit the model.
    """
    files = TensorFiles.open(folder)
    table = list(entries(config))
    require_match(table, files)
    graphdef, state = nnx.split(abstract_model(config, dtype, backend))
    names = {entry.path: entry for entry in table}
    leaves = [(path, leaf.replace(_read(files, names[path], dtype))) for path, leaf in nnx.to_flat_state(state)]
    return graphdef, nnx.from_flat_state(leaves)


def _read(files: TensorFiles, entry: Entry, dtype: jnp.dtype) -> jax.Array:
    value = files.read(entry.name).reshape(entry.shape)
    return jax.device_put(np.asarray(value, dtype))
