"""DeepMind's released tree as our parameters: which part of which leaf, and in which order of axes.

A leaf holds one or several parameters: keys with values, gate with up, all layers of the vision tower. Orders of
axes are spelled in our letters: "HDC -> HCD" is a leaf [heads, width, head size] and a parameter [H, C, D].
Source: google-deepmind/gemma 4.1.0, and `convert_diffusion_gemma_weights.py` in transformers' repository.

    tree = DeepMindTree.open(folder, config)
    tree.leaves                            every leaf once, with the parameters in it
    tree.read(leaves)                      those parameters, in our shapes
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from dgemma_jax.checkpoint import names, orbax
from dgemma_jax.checkpoint.match import Shape, require_shapes
from dgemma_jax.checkpoint.names import Entry, entries
from dgemma_jax.checkpoint.safetensors import CheckpointError
from dgemma_jax.config import FULL, ModelConfig

# Our parameter: (leaf, where in the leading axes of the leaf, order of the rest there and here).
_Place = tuple[str, tuple[int, ...], str]
_TEXT: Mapping[str, _Place] = {
    "embedding_VD": ("embedder/input_embedding", (), "VD -> VD"),
    "norm.scale": ("final_norm", (), "D -> D"),
    "self_conditioning.pre_norm.scale": ("self_conditioner/pre_norm", (), "D -> D"),
    "self_conditioning.mlp.gate_FD": ("self_conditioner/ffw/gating_einsum", (0,), "FD -> FD"),
    "self_conditioning.mlp.up_FD": ("self_conditioner/ffw/gating_einsum", (1,), "FD -> FD"),
    "self_conditioning.mlp.down_DF": ("self_conditioner/ffw/linear", (), "FD -> DF"),
}
# Theirs counts the experts as the first MLP and the dense one, which ours names plainly, as the second.
_LAYER: Mapping[str, _Place] = {
    "attention_norm.scale": ("pre_attention_norm", (), "D -> D"),
    "attention_out_norm.scale": ("post_attention_norm", (), "D -> D"),
    "attention.q_HCD": ("attn/q_einsum", (), "HDC -> HCD"),
    "attention.k_KCD": ("attn/kv_einsum", (0,), "KDC -> KCD"),
    "attention.v_KCD": ("attn/kv_einsum", (1,), "KDC -> KCD"),
    "attention.o_DHC": ("attn/attn_vec_einsum", (), "HCD -> DHC"),
    "attention.q_norm.scale": ("attn/query_norm", (), "C -> C"),
    "attention.k_norm.scale": ("attn/key_norm", (), "C -> C"),
    "mlp_norm.scale": ("pre_ffw2_norm", (), "D -> D"),
    "mlp_out_norm.scale": ("post_ffw2_norm", (), "D -> D"),
    "mlp.gate_FD": ("mlp2/gating_einsum", (0,), "FD -> FD"),
    "mlp.up_FD": ("mlp2/gating_einsum", (1,), "FD -> FD"),
    "mlp.down_DF": ("mlp2/linear", (), "FD -> DF"),
    "experts_norm.scale": ("pre_ffw_norm", (), "D -> D"),
    "experts_out_norm.scale": ("post_ffw1_norm", (), "D -> D"),
    "experts.gate_up_EFD": ("mlp/gating_einsum", (), "E2MD -> E2MD"),
    "experts.down_EDF": ("mlp/linear", (), "EMD -> EDM"),
    "router.proj_ED": ("mlp/router_logits", (), "DE -> ED"),
    "router.scale_D": ("mlp/router_scale", (), "D -> D"),
    "router.per_expert_scale_E": ("mlp/per_expert_scale", (), "E -> E"),
    "feedforward_out_norm.scale": ("post_ffw_norm", (), "D -> D"),
    # One scalar there: both of ours start as it.
    "decoder_scalar_1": ("skip_scale", (), "1 -> 1"),
    "encoder_scalar_1": ("skip_scale", (), "1 -> 1"),
}
_FULL_KEYS: _Place = ("attn/k_einsum", (), "KDC -> KCD")
_VISION: Mapping[str, _Place] = {
    "patch_WP": ("vision_encoder/entry/input_projection", (), "PW -> WP"),
    "position_2NW": ("vision_encoder/entry/pos_emb", (), "N2W -> 2NW"),
    "standard_bias_W": ("vision_encoder/standardize/bias", (), "W -> W"),
    "standard_scale_W": ("vision_encoder/standardize/scale", (), "W -> W"),
    "projection_DW": ("embedder/mm_input_projection", (), "WD -> DW"),
}
_VISION_LAYER: Mapping[str, _Place] = {
    "attention_norm.scale": ("pre_attention_norm", (), "W -> W"),
    "attention_out_norm.scale": ("post_attention_norm", (), "W -> W"),
    "mlp_norm.scale": ("pre_ffw_norm", (), "W -> W"),
    "mlp_out_norm.scale": ("post_ffw_norm", (), "W -> W"),
    "attention.q.matrix_ZY": ("attn/q_einsum", (), "HWC -> HCW"),
    "attention.k.matrix_ZY": ("attn/kv_einsum", (0,), "KWC -> KCW"),
    "attention.v.matrix_ZY": ("attn/kv_einsum", (1,), "KWC -> KCW"),
    "attention.o.matrix_ZY": ("attn/attn_vec_einsum", (), "HCW -> WHC"),
    "attention.q_norm.scale": ("attn/query_norm", (), "C -> C"),
    "attention.k_norm.scale": ("attn/key_norm", (), "C -> C"),
    "gate.matrix_ZY": ("mlp/gating_einsum", (0,), "FW -> FW"),
    "up.matrix_ZY": ("mlp/gating_einsum", (1,), "FW -> FW"),
    "down.matrix_ZY": ("mlp/linear", (), "FW -> WF"),
}
_Stored = tuple[orbax.Key, jax.ShapeDtypeStruct]
_VISION_BLOCK = "vision_encoder/transformer/stacked_layers/block/"


@dataclasses.dataclass(frozen=True)
class Part:
    """One of our parameters inside a leaf: at `index` of the leading axes, the others in the order `axes`."""

    entry: Entry
    index: tuple[int, ...]
    axes: tuple[int, ...]

    def of(self, leaf: np.ndarray) -> np.ndarray:
        """The parameter in our shape."""
        return leaf[self.index].transpose(self.axes).reshape(self.entry.shape)


@dataclasses.dataclass(frozen=True)
class Leaf:
    """An array of the tree, named without the wrappers that differ between releases."""

    name: str
    shape: Shape
    parts: tuple[Part, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def leaves(config: ModelConfig) -> list[Leaf]:
    """Every leaf of the tree for this configuration.

    Raises:
        CheckpointError: clipped vision linears, which no release of this tree has.
    """
    if config.vision is not None and config.vision.use_clipped_linears:
        raise CheckpointError("DeepMind's tree is not known for a vision tower with use_clipped_linears")
    shapes: dict[str, Shape] = {}
    parts: dict[str, list[Part]] = {}
    for entry in entries(config):
        name, leading, index, order = _place(config, entry.path)
        there, here = order.split(" -> ")
        sizes = _sizes(config, entry.path)
        shapes[name] = (*leading, *(sizes[letter] for letter in there))
        parts.setdefault(name, []).append(Part(entry, index, tuple(there.index(letter) for letter in here)))
    return [Leaf(name, shapes[name], tuple(found)) for name, found in parts.items()]


def _place(config: ModelConfig, path: names.Path) -> tuple[str, Shape, tuple[int, ...], str]:
    """Leaf, sizes of its leading axes, where in them, and the order of the rest."""
    if path[1] != "layers":
        table = _TEXT if path[0] == "text" else _VISION
        name, index, order = table[".".join(map(str, path[1:]))]
        return name, (2,) * len(index), index, order
    number, inside = int(str(path[2])), ".".join(map(str, path[3:]))
    if path[0] == "vision":
        name, index, order = _VISION_LAYER[inside]
        stack = 0 if config.vision is None else config.vision.num_hidden_layers
        return _VISION_BLOCK + name, (stack, *(2,) * len(index)), (number, *index), order
    is_full = config.text.layer_types[number] == FULL
    name, index, order = _FULL_KEYS if is_full and inside == "attention.k_KCD" else _LAYER[inside]
    return f"layer_{number}/{name}", (2,) * len(index), index, order


def _sizes(config: ModelConfig, path: names.Path) -> dict[str, int]:
    """What the letters count, where the parameter is."""
    text, vision = config.text, config.vision
    if path[0] == "vision" and vision is not None:
        heads = {"H": vision.num_attention_heads, "K": vision.num_key_value_heads, "C": vision.head_dim}
        rest = {"W": vision.hidden_size, "F": vision.intermediate_size, "P": vision.patch_values}
        return heads | rest | {"N": vision.position_embedding_size, "D": text.hidden_size, "2": 2}
    kind = text.layer_types[int(str(path[2]))] if path[1] == "layers" else FULL
    heads = {"H": text.num_attention_heads, "K": text.key_value_heads(kind), "C": text.head_size(kind)}
    rest = {"V": text.vocab_size, "D": text.hidden_size, "F": text.intermediate_size}
    return heads | rest | {"E": text.num_experts, "M": text.moe_intermediate_size, "1": 1, "2": 2}


class DeepMindTree:
    """A released tree that fits a configuration."""

    def __init__(self, folder: Path, table: list[Leaf], stored: Mapping[str, _Stored]) -> None:
        self.folder, self.leaves, self._stored = folder, table, stored

    @classmethod
    def open(cls, folder: Path, config: ModelConfig) -> DeepMindTree:
        """Compares every leaf with the configuration.

        Raises:
            CheckpointError: leaves that are missing, left over or of another shape, all of them by name.
        """
        table = leaves(config)
        wanted = {leaf.name: leaf.shape for leaf in table}
        found: dict[str, Shape] = {}
        stored: dict[str, _Stored] = {}
        for key, leaf in orbax.stored(folder).items():
            name = _plain_name(key, wanted)
            if name in stored:
                raise CheckpointError(f"{folder}: {'/'.join(stored[name][0])} and {'/'.join(key)} are the same leaf")
            found[name], stored[name] = tuple(leaf.shape), (key, leaf)
        require_shapes(folder, wanted, found)
        return cls(folder, table, stored)

    def dtype(self, leaf: Leaf) -> np.dtype:
        """As it is stored."""
        return np.dtype(self._stored[leaf.name][1].dtype)

    def read(self, leaves: Sequence[Leaf]) -> Iterator[tuple[Entry, np.ndarray]]:
        """The parameters in some leaves, which are read together and once."""
        found = orbax.read(self.folder, dict(self._stored[leaf.name] for leaf in leaves))
        for leaf in leaves:
            array = found.pop(self._stored[leaf.name][0])
            yield from ((part.entry, part.of(array)) for part in leaf.parts)


def _plain_name(key: orbax.Key, wanted: Mapping[str, Shape]) -> str:
    """Without `transformer/params/` before it, and without the `/w` or `/scale` that some releases have after it."""
    words = "/".join(key).split("/")
    while words[0] in ("transformer", "params") and len(words) > 1:
        words = words[1:]
    name, without = "/".join(words), "/".join(words[:-1])
    return without if name not in wanted and words[-1] in ("w", "scale") and without in wanted else name
