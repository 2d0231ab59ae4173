"""Checkpoints as compressed-tensors publishes them in FP8, made from full ones, and their full twins."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from dgemma_jax.checkpoint.names import entries
from dgemma_jax.checkpoint.safetensors import TensorFiles
from dgemma_jax.checkpoint.safetensors_writing import write_tensors
from dgemma_jax.config_json import read_model_config

FP8, BF16 = np.dtype(ml_dtypes.float8_e4m3fn), np.dtype(ml_dtypes.bfloat16)
LARGEST = 448.0
MATRICES = ("q_proj.weight", "k_proj.weight", "v_proj.weight", "o_proj.weight")
MATRICES += tuple(f"mlp.{name}_proj.weight" for name in ("gate", "up", "down"))
ARGUMENTS: dict[str, Any] = {
    "actorder": None,
    "block_structure": None,
    "group_size": None,
    "num_bits": 8,
    "observer_kwargs": {},
    "symmetric": True,
    "type": "float",
}
SCHEME: dict[str, Any] = {
    "config_groups": {
        "group_0": {
            "format": "float-quantized",
            "input_activations": {**ARGUMENTS, "dynamic": True, "observer": None, "strategy": "token"},
            "output_activations": None,
            "targets": ["Linear"],
            "weights": {**ARGUMENTS, "dynamic": False, "observer": "minmax", "strategy": "channel"},
        }
    },
    "format": "float-quantized",
    "global_compression_ratio": None,
    "ignore": ["lm_head", "model.decoder.layers.0.router.proj"],
    "kv_cache_scheme": None,
    "quant_method": "compressed-tensors",
    "quantization_status": "compressed",
    "sparsity_config": {},
    "transform_config": {},
    "version": "0.15.0",
}


def quantized(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """FP8 numbers [outputs, inputs] and bfloat16 scales [outputs, 1]."""
    full = matrix.astype(np.float32)
    scale = np.maximum(np.abs(full).max(axis=1, keepdims=True) / LARGEST, 1e-12).astype(BF16)
    return np.clip(full / scale.astype(np.float32), -LARGEST, LARGEST).astype(FP8), scale


def fp8_tensors(source: Path) -> dict[str, np.ndarray]:
    """The tensors of a full checkpoint folder as they are published in FP8."""
    files, found = TensorFiles.open(source), {}
    for name in files.names:
        value, layer = np.array(files.read(name)), name.rpartition(".")[0]
        matrices = {}
        if ".decoder.layers." in name and name.endswith(MATRICES):
            matrices[name] = value
        elif name.endswith("experts.gate_up_proj"):
            for expert, both in enumerate(value):
                gate, up = np.split(both, 2)
                matrices |= {
                    f"{layer}.{expert}.gate_proj.weight": gate,
                    f"{layer}.{expert}.up_proj.weight": up,
                }
        elif name.endswith("experts.down_proj"):
            matrices = {f"{layer}.{expert}.down_proj.weight": down for expert, down in enumerate(value)}
        else:
            found[name] = value
        for matrix, numbers in matrices.items():
            found[matrix], found[f"{matrix}_scale"] = quantized(numbers)
    return found


def write_fp8(source: Path, folder: Path) -> dict[str, np.ndarray]:
    """Writes the folder, and returns its tensors."""
    tensors = fp8_tensors(source)
    _copy(source, folder, tensors)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": SCHEME}))
    return tensors


def write_twin(source: Path, folder: Path) -> None:
    """Writes a full checkpoint with the numbers that the FP8 one stands for, in float32."""
    tensors, found = fp8_tensors(source), {}

    def number(name: str) -> np.ndarray:
        return tensors[name].astype(np.float32) * tensors[f"{name}_scale"].astype(np.float32)

    for entry in entries(read_model_config(source)):
        experts = range(entry.shape[0])
        if entry.name.endswith("gate_up_proj"):
            stem = entry.name.removesuffix("gate_up_proj")
            gates, ups = ([number(f"{stem}{e}.{name}_proj.weight") for e in experts] for name in ("gate", "up"))
            found[entry.name] = np.concatenate([gates, ups], axis=1)
        elif entry.name.endswith("experts.down_proj"):
            stem = entry.name.removesuffix("down_proj")
            found[entry.name] = np.stack([number(f"{stem}{e}.down_proj.weight") for e in experts])
        elif f"{entry.name}_scale" in tensors:
            found[entry.name] = number(entry.name)
        else:
            found[entry.name] = tensors[entry.name].astype(np.float32)
    _copy(source, folder, found)


def _copy(source: Path, folder: Path, tensors: dict[str, np.ndarray]) -> None:
    folder.mkdir()
    for file in source.iterdir():
        if file.suffix in (".json", ".jinja") and not file.name.endswith("index.json"):
            shutil.copy(file, folder)
    write_tensors(folder / "model.safetensors", tensors, {"format": "pt"})
