"""A tiny tree in the layout that DeepMind releases, made from a published-layout checkpoint, leaf by leaf."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from orbax import checkpoint as ocp

from dgemma_jax.checkpoint.safetensors import TensorFiles
from dgemma_jax.config import SLIDING, ModelConfig

Leaves = dict[str, np.ndarray]
NORMS = {
    "pre_attention_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "pre_ffw_norm": "pre_feedforward_layernorm_2",
    "post_ffw1_norm": "post_feedforward_layernorm_2",
    "pre_ffw2_norm": "pre_feedforward_layernorm",
    "post_ffw2_norm": "post_feedforward_layernorm_1",
    "post_ffw_norm": "post_feedforward_layernorm",
}
VISION_NORMS = {
    "pre_attention_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "pre_ffw_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}


def leaves_of(folder: Path, config: ModelConfig) -> Leaves:
    """Every leaf by its full name. The encoder's layer scalars are not in it: that layout has one for both."""
    files = TensorFiles.open(folder)
    t = {name: np.array(files.read(name)) for name in files.names}
    dec = "model.decoder."
    leaves = {
        "embedder/input_embedding": t[dec + "embed_tokens.weight"],
        "final_norm/scale": t[dec + "norm.weight"],
        "self_conditioner/pre_norm/scale": t[dec + "self_conditioning.pre_norm.weight"],
        "self_conditioner/ffw/gating_einsum": np.stack(
            [t[dec + f"self_conditioning.{part}_proj.weight"] for part in ("gate", "up")]
        ),
        "self_conditioner/ffw/linear": t[dec + "self_conditioning.down_proj.weight"].T,
    }
    for number in range(config.text.num_hidden_layers):
        prefix = f"{dec}layers.{number}."
        layer = {name.removeprefix(prefix): value for name, value in t.items() if name.startswith(prefix)}
        leaves |= {f"layer_{number}/{name}": value for name, value in _text_layer(layer, config, number).items()}
    return leaves | (_vision(t, config) if config.vision else {})


def _text_layer(t: Leaves, config: ModelConfig, number: int) -> Leaves:
    text = config.text
    kind = text.layer_types[number]
    width, size = text.hidden_size, text.head_size(kind)

    def heads(name: str) -> np.ndarray:
        return t[f"self_attn.{name}_proj.weight"].reshape(-1, size, width).transpose(0, 2, 1)

    is_sliding = kind == SLIDING
    keys = {"attn/kv_einsum/w": np.stack([heads("k"), heads("v")])} if is_sliding else {"attn/k_einsum/w": heads("k")}
    gate_up = t["experts.gate_up_proj"]
    return {
        **{f"{theirs}/scale": t[f"{ours}.weight"] for theirs, ours in NORMS.items()},
        **keys,
        "attn/q_einsum/w": heads("q"),
        "attn/attn_vec_einsum/w": t["self_attn.o_proj.weight"].reshape(width, -1, size).transpose(1, 2, 0),
        "attn/query_norm/scale": t["self_attn.q_norm.weight"],
        "attn/key_norm/scale": t["self_attn.k_norm.weight"],
        "skip_scale": t["layer_scalar"],
        "mlp/gating_einsum": gate_up.reshape(len(gate_up), 2, -1, width),
        "mlp/linear": t["experts.down_proj"].transpose(0, 2, 1),
        "mlp/router_logits/w": t["router.proj.weight"].T,
        "mlp/router_scale": t["router.scale"],
        "mlp/per_expert_scale": t["router.per_expert_scale"],
        "mlp2/gating_einsum": np.stack([t["mlp.gate_proj.weight"], t["mlp.up_proj.weight"]]),
        "mlp2/linear": t["mlp.down_proj.weight"].T,
    }


def _vision(t: Leaves, config: ModelConfig) -> Leaves:
    vision = config.vision
    assert vision is not None
    tower = "model.encoder.vision_tower."
    blocks = []
    for number in range(vision.num_hidden_layers):
        prefix = f"{tower}encoder.layers.{number}."
        layer = {name.removeprefix(prefix): value for name, value in t.items() if name.startswith(prefix)}
        blocks.append(_vision_layer(layer, vision.hidden_size, vision.head_dim))
    stacked = {name: np.stack([block[name] for block in blocks]) for name in blocks[0]}
    return {
        "embedder/mm_input_projection/w": t["model.encoder.embed_vision.embedding_projection.weight"].T,
        "vision_encoder/entry/input_projection/w": t[tower + "patch_embedder.input_proj.weight"].T,
        "vision_encoder/entry/pos_emb": t[tower + "patch_embedder.position_embedding_table"].transpose(1, 0, 2),
        "vision_encoder/standardize/bias": t[tower + "std_bias"],
        "vision_encoder/standardize/scale": t[tower + "std_scale"],
        **{f"vision_encoder/transformer/stacked_layers/block/{name}": value for name, value in stacked.items()},
    }


def _vision_layer(t: Leaves, width: int, size: int) -> Leaves:
    def heads(name: str) -> np.ndarray:
        return t[f"self_attn.{name}_proj.linear.weight"].reshape(-1, size, width).transpose(0, 2, 1)

    return {
        **{f"{theirs}/scale": t[f"{ours}.weight"] for theirs, ours in VISION_NORMS.items()},
        "attn/q_einsum/w": heads("q"),
        "attn/kv_einsum/w": np.stack([heads("k"), heads("v")]),
        "attn/attn_vec_einsum/w": t["self_attn.o_proj.linear.weight"].reshape(width, -1, size).transpose(1, 2, 0),
        "attn/query_norm/scale": t["self_attn.q_norm.weight"],
        "attn/key_norm/scale": t["self_attn.k_norm.weight"],
        "mlp/gating_einsum": np.stack([t["mlp.gate_proj.linear.weight"], t["mlp.up_proj.linear.weight"]]),
        "mlp/linear": t["mlp.down_proj.linear.weight"].T,
    }


def nested(leaves: Leaves) -> dict[str, Any]:
    """The leaves as the tree of today's releases."""
    tree: dict[str, Any] = {}
    for name, value in leaves.items():
        *parents, last = name.split("/")
        inside = tree
        for parent in parents:
            inside = inside.setdefault(parent, {})
        inside[last] = np.ascontiguousarray(value)
    return tree


def write(folder: Path, tree: dict[str, Any]) -> Path:
    """Writes it as the releases were written."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder, tree)
    return folder
