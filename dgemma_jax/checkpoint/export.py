"""From parameters to a checkpoint folder in the published layout, which `load` and transformers read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx

from dgemma_jax.checkpoint.names import entries
from dgemma_jax.checkpoint.safetensors_writing import write_tensors
from dgemma_jax.config import GenerationConfig, ModelConfig
from dgemma_jax.config_json import write_config


def published_tensors(config: ModelConfig, params: nnx.State, dtype: jnp.dtype) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor under its published name, in its published shape."""
    values = dict(nnx.to_flat_state(params))
    for entry in entries(config):
        yield entry.name, np.asarray(values[entry.path][...]).astype(dtype, copy=False).reshape(entry.published_shape)


def export(
    folder: Path, config: ModelConfig, generation: GenerationConfig, params: nnx.State, dtype: jnp.dtype
) -> None:
    """Writes model.safetensors, config.json and generation_config.json into a folder that exists or is made.

    The weights come first: a folder with a config.json has them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = dict(published_tensors(config, params, dtype))
    write_tensors(folder / "model.safetensors", tensors, {"format": "pt"})
    write_config(config, generation, folder)
