"""DeepMind's released tree: every number of every leaf ends where transformers' own converter puts it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import released_tree
from golden import reading

from dgemma_jax.checkpoint.deepmind import DeepMindTree, Leaf, leaves
from dgemma_jax.checkpoint.safetensors import CheckpointError, TensorFiles
from dgemma_jax.config import DIFFUSION_GEMMA_26B_A4B
from dgemma_jax.config_json import read_model_config

TINY = reading.FOLDER / "window6"
CONFIG = read_model_config(TINY)


@pytest.fixture(scope="module")
def made() -> released_tree.Leaves:
    return released_tree.leaves_of(TINY, CONFIG)


@pytest.fixture(scope="module")
def published() -> list[Leaf]:
    """The 26B's own layers, one round of six and two of vision: the others repeat them."""
    text, vision = DIFFUSION_GEMMA_26B_A4B.text, DIFFUSION_GEMMA_26B_A4B.vision
    assert vision is not None
    return leaves(
        dataclasses.replace(
            DIFFUSION_GEMMA_26B_A4B,
            text=dataclasses.replace(text, layer_types=text.layer_types[:6]),
            vision=dataclasses.replace(vision, num_hidden_layers=2),
        )
    )


def test_every_number_of_every_leaf_is_in_one_parameter(published: list[Leaf]) -> None:
    for leaf in published:
        owners = [part for part in leaf.parts if part.entry.path[-1] != "encoder_scalar_1"]
        assert len({part.index for part in owners}) == len(owners)
        assert sum(part.entry.size for part in owners) == leaf.size


def test_the_published_tree_has_the_published_shapes(published: list[Leaf]) -> None:
    shapes = {leaf.name: leaf.shape for leaf in published}
    assert shapes["layer_0/attn/kv_einsum"] == (2, 8, 2816, 256)
    assert shapes["layer_5/attn/k_einsum"] == (2, 2816, 512)
    assert shapes["layer_5/attn/attn_vec_einsum"] == (16, 512, 2816)
    assert shapes["layer_4/mlp/gating_einsum"] == (128, 2, 704, 2816)
    assert shapes["layer_4/mlp2/linear"] == (2112, 2816)
    assert shapes["vision_encoder/entry/pos_emb"] == (10240, 2, 1152)
    assert shapes["vision_encoder/transformer/stacked_layers/block/attn/kv_einsum"] == (2, 2, 16, 1152, 72)


def read_all(folder: Path) -> dict[str, np.ndarray]:
    tree = DeepMindTree.open(folder, CONFIG)
    found = {}
    for entry, value in tree.read(tree.leaves):
        assert entry.name not in found
        found[entry.name] = value.reshape(entry.published_shape)
    return found


def as_released(leaves: released_tree.Leaves) -> dict:
    return released_tree.nested(leaves)


def as_flat(leaves: released_tree.Leaves) -> dict:
    """The older form: paths as names, and every leaf in a wrapper."""
    tree = {}
    for name, value in leaves.items():
        path, last = name.rsplit("/", 1)
        is_wrapped = last in ("w", "scale") or path.endswith("standardize")
        parent = path if is_wrapped else name
        tree.setdefault(f"transformer/{parent}", {})[last if is_wrapped else "w"] = np.ascontiguousarray(value)
    return tree


@pytest.mark.parametrize("form", [as_released, as_flat])
def test_a_released_tree_becomes_the_checkpoint_it_was_made_from(
    form, made: released_tree.Leaves, tmp_path: Path
) -> None:
    found = read_all(released_tree.write(tmp_path / "tree", form(made)))
    published = TensorFiles.open(TINY)
    assert found.keys() == set(published.names)
    for name, value in found.items():
        # That tree has one scalar a layer, the decoder's here.
        wanted = published.read(name.replace("encoder.language_model", "decoder"))
        np.testing.assert_array_equal(value, wanted, name)


def test_what_does_not_fit_is_named_all_at_once(made: released_tree.Leaves, tmp_path: Path) -> None:
    changed = dict(made)
    del changed["layer_1/skip_scale"]
    changed["audio_encoder/w"] = np.zeros(3, np.float32)
    changed["final_norm/scale"] = changed["final_norm/scale"][:-1]
    folder = released_tree.write(tmp_path / "tree", released_tree.nested(changed))
    with pytest.raises(CheckpointError) as caught:
        DeepMindTree.open(folder, CONFIG)
    said = str(caught.value)
    assert "- layer_1/skip_scale (1,)" in said
    assert "+ audio_encoder/w" in said
    assert "! final_norm: wanted (32,), found (31,)" in said


def test_one_leaf_under_two_names_is_refused(made: released_tree.Leaves, tmp_path: Path) -> None:
    twice = released_tree.nested(made) | {"transformer/final_norm": made["final_norm/scale"]}
    folder = released_tree.write(tmp_path / "tree", twice)
    with pytest.raises(CheckpointError, match="are the same leaf"):
        DeepMindTree.open(folder, CONFIG)


def test_clipped_linears_are_refused() -> None:
    with pytest.raises(CheckpointError, match="use_clipped_linears"):
        leaves(read_model_config(reading.FOLDER / "clipped"))
