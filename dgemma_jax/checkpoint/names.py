"""The one mapping between our parameters and the published tensor names.

Published tensors flatten heads ([H*C, D]); ours keep them apart ([H, C, D]). Nothing is transposed, so both
directions are reshapes of the same bytes.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from flax.typing import Key

from dgemma_jax.config import ModelConfig
from dgemma_jax.model.diffusion_gemma import DiffusionGemma

Path = tuple[Key, ...]

_LAYER = {
    "attention_norm.scale": "input_layernorm.weight",
    "attention_out_norm.scale": "post_attention_layernorm.weight",
    "attention.q_HCD": "self_attn.q_proj.weight",
    "attention.k_KCD": "self_attn.k_proj.weight",
    "attention.v_KCD": "self_attn.v_proj.weight",
    "attention.o_DHC": "self_attn.o_proj.weight",
    "attention.q_norm.scale": "self_attn.q_norm.weight",
    "attention.k_norm.scale": "self_attn.k_norm.weight",
    "mlp_norm.scale": "pre_feedforward_layernorm.weight",
    "mlp_out_norm.scale": "post_feedforward_layernorm_1.weight",
    "mlp.gate_FD": "mlp.gate_proj.weight",
    "mlp.up_FD": "mlp.up_proj.weight",
    "mlp.down_DF": "mlp.down_proj.weight",
    "experts_norm.scale": "pre_feedforward_layernorm_2.weight",
    "experts_out_norm.scale": "post_feedforward_layernorm_2.weight",
    "experts.gate_up_EFD": "experts.gate_up_proj",
    "experts.down_EDF": "experts.down_proj",
    "router.proj_ED": "router.proj.weight",
    "router.scale_D": "router.scale",
    "router.per_expert_scale_E": "router.per_expert_scale",
    "feedforward_out_norm.scale": "post_feedforward_layernorm.weight",
    "decoder_scalar_1": "layer_scalar",
}
_TEXT = {
    "embedding_VD": "embed_tokens.weight",
    "norm.scale": "norm.weight",
    "self_conditioning.pre_norm.scale": "self_conditioning.pre_norm.weight",
    "self_conditioning.mlp.gate_FD": "self_conditioning.gate_proj.weight",
    "self_conditioning.mlp.up_FD": "self_conditioning.up_proj.weight",
    "self_conditioning.mlp.down_DF": "self_conditioning.down_proj.weight",
}
_VISION = {
    "patch_WP": "vision_tower.patch_embedder.input_proj.weight",
    "position_2NW": "vision_tower.patch_embedder.position_embedding_table",
    "standard_bias_W": "vision_tower.std_bias",
    "standard_scale_W": "vision_tower.std_scale",
    "projection_DW": "embed_vision.embedding_projection.weight",
}
_VISION_LAYER = {
    "attention_norm.scale": "input_layernorm.weight",
    "attention_out_norm.scale": "post_attention_layernorm.weight",
    "mlp_norm.scale": "pre_feedforward_layernorm.weight",
    "mlp_out_norm.scale": "post_feedforward_layernorm.weight",
    "attention.q_norm.scale": "self_attn.q_norm.weight",
    "attention.k_norm.scale": "self_attn.k_norm.weight",
}
_VISION_LINEAR = {
    "attention.q": "self_attn.q_proj",
    "attention.k": "self_attn.k_proj",
    "attention.v": "self_attn.v_proj",
    "attention.o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}


class Entry(NamedTuple):
    """One tensor: where it lives in the model, its published name, both shapes, its part."""

    path: Path
    name: str
    shape: tuple[int, ...]
    published_shape: tuple[int, ...]
    part: str

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def abstract_model(
    config: ModelConfig, dtype: jnp.dtype, backend: str = "all_experts", head: str = "materialised"
) -> DiffusionGemma:
    """The model with shapes for parameters: nothing is allocated."""
    return nnx.eval_shape(lambda: DiffusionGemma(config, nnx.Rngs(0), dtype, backend, head))


def entries(config: ModelConfig) -> Iterator[Entry]:
    """Every tensor of a checkpoint with this configuration."""
    return iter(_entries(config))


@functools.cache  # of the 26B it takes seconds, and several readers ask
def _entries(config: ModelConfig) -> tuple[Entry, ...]:
    return tuple(_walk(config))


def _walk(config: ModelConfig) -> Iterator[Entry]:
    for path, parameter in nnx.to_flat_state(nnx.state(abstract_model(config, jnp.dtype("bfloat16")))):
        name, part = published_name(path)
        shape = tuple(parameter.shape)
        yield Entry(path, name, shape, _published_shape(path[-1], shape), part)


def published_name(path: Path) -> tuple[str, str]:
    """The published name of a parameter, and the part of the model that it belongs to."""
    if path[:2] == ("text", "layers"):
        inside = ".".join(map(str, path[3:]))
        if inside == "encoder_scalar_1":
            return f"model.encoder.language_model.layers.{path[2]}.layer_scalar", "layer scalars"
        return f"model.decoder.layers.{path[2]}.{_LAYER[inside]}", _text_part(inside)
    if path[0] == "text":
        inside = ".".join(map(str, path[1:]))
        return f"model.decoder.{_TEXT[inside]}", "norms" if inside == "norm.scale" else str(path[1]).split("_VD")[0]
    if path[:2] == ("vision", "layers"):
        inside = _vision_layer_name(".".join(map(str, path[3:])))
        return f"model.encoder.vision_tower.encoder.layers.{path[2]}.{inside}", "vision"
    return f"model.encoder.{_VISION[str(path[1])]}", "vision"


def _vision_layer_name(inside: str) -> str:
    if inside in _VISION_LAYER:
        return _VISION_LAYER[inside]
    linear, leaf = inside.rsplit(".", 1)
    return f"{_VISION_LINEAR[linear]}.{'linear.weight' if leaf == 'matrix_ZY' else leaf}"


def _text_part(inside: str) -> str:
    first = inside.split(".")[0]
    if inside.endswith("norm.scale") and first != "attention":
        return "norms"
    return {"decoder_scalar_1": "layer scalars", "mlp": "dense mlp"}.get(first, first)


def _published_shape(leaf: Key, shape: tuple[int, ...]) -> tuple[int, ...]:
    if leaf in ("q_HCD", "k_KCD", "v_KCD"):
        return (shape[0] * shape[1], shape[2])
    if leaf == "o_DHC":
        return (shape[0], shape[1] * shape[2])
    return shape
