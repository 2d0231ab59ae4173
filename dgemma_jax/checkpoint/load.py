"""From a checkpoint folder to parameters: every tensor accounted for, then read one by one."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dgemma_jax.checkpoint.match import require_shapes
from dgemma_jax.checkpoint.names import Entry, abstract_model, entries
from dgemma_jax.checkpoint.quantize import Kind, is_quantizable, quantize_parameters
from dgemma_jax.checkpoint.quantize import quantize as quantize_array
from dgemma_jax.checkpoint.safetensors import TensorFiles
from dgemma_jax.config import ModelConfig
from dgemma_jax.model.quantized import Quantized

ORBAX_FOLDER = "orbax"


def require_match(wanted: list[Entry], files: TensorFiles) -> None:
    """Raises `CheckpointError` listing all that is missing, unexpected or of another shape, by name.

    A separate `lm_head.weight` is accepted where it repeats the embedding: the head is tied to it.
    """
    tied = _tied_copies(files)
    found = {name: files.shape(name) for name in files.names if name not in tied}
    require_shapes(files.folder, {entry.name: entry.published_shape for entry in wanted}, found)


def _tied_copies(files: TensorFiles) -> set[str]:
    head, embedding = "lm_head.weight", "model.decoder.embed_tokens.weight"
    both = head in files and embedding in files and files.shape(head) == files.shape(embedding)
    return {head} if both and np.array_equal(files.read(head), files.read(embedding)) else set()


def load_parameters(
    folder: Path,
    config: ModelConfig,
    dtype: jnp.dtype,
    backend: str,
    head: str = "materialised",
    quantize: Kind | None = None,
) -> tuple[nnx.GraphDef, nnx.State]:
    """Structure and parameters of the model, in `dtype`, on the default device; quantised tensor by tensor.

    Raises `CheckpointError` for files that are damaged or do not fit the model.
    """
    graphdef, state = nnx.split(abstract_model(config, dtype, backend, head))
    flat = list(nnx.to_flat_state(state))
    if (folder / ORBAX_FOLDER).is_dir():
        from dgemma_jax.checkpoint import orbax  # most folders hold safetensors, and need not wait for its import

        found = orbax.restore(
            folder / ORBAX_FOLDER, {path: jax.ShapeDtypeStruct(leaf.shape, dtype) for path, leaf in flat}
        )
        params = nnx.from_flat_state([(path, leaf.replace(found[path])) for path, leaf in flat])
        return graphdef, params if quantize is None else quantize_parameters(params, quantize)
    files = TensorFiles.open(folder)
    table = list(entries(config))
    require_match(table, files)
    names = {entry.path: entry for entry in table}
    return graphdef, nnx.from_flat_state(
        [(path, leaf.replace(_read(files, names[path], dtype, quantize))) for path, leaf in flat]
    )


def _read(files: TensorFiles, entry: Entry, dtype: jnp.dtype, kind: Kind | None) -> jax.Array | Quantized:
    value = files.read(entry.name).reshape(entry.shape)
    if kind is not None and is_quantizable(entry.path):
        return quantize_array(value, entry.path, kind)
    return jax.device_put(np.asarray(value, dtype))
