"""Loading onto a mesh: the same numbers, each where the table wants it, each byte read once and for its device."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from golden import reading

import dgemma_jax
from dgemma_jax import sharding
from dgemma_jax.checkpoint import orbax
from dgemma_jax.checkpoint.quantize import KINDS, Kind
from dgemma_jax.checkpoint.quantized_shards import quantize_parameters
from dgemma_jax.checkpoint.safetensors import TensorFiles
from dgemma_jax.model.quantized import Quantized

FOLDER = reading.FOLDER / "window6"
MESH = "data=2,expert=2,model=2"


def check(model: dgemma_jax.Model) -> None:
    """The model is that of one device, spread."""
    assert model.mesh is not None
    jax.tree.map(np.testing.assert_array_equal, model.params, reading.model("window6").params)
    for path, leaf in nnx.to_flat_state(model.params):
        assert leaf[...].sharding == sharding.parameter_sharding(leaf, model.mesh), path


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[int]]:
    """How much is read of each tensor, part by part."""
    read = TensorFiles.read_part
    found: dict[str, list[int]] = {}

    def counted(self: TensorFiles, name: str, *arguments) -> np.ndarray:
        part = read(self, name, *arguments)
        found.setdefault(name, []).append(part.size)
        return part

    reading.model("window6")  # which is not counted
    monkeypatch.setattr(TensorFiles, "read_part", counted)
    return found


def test_safetensors_are_read_once_each_part_for_its_devices(sizes: dict[str, list[int]]) -> None:
    check(dgemma_jax.load(FOLDER, dtype="float32", mesh=MESH))
    files = TensorFiles.open(FOLDER)
    assert {name: sum(parts) for name, parts in sizes.items()} == {
        name: int(np.prod(files.shape(name))) for name in files.names
    }
    assert len(sizes["model.decoder.layers.0.experts.gate_up_proj"]) == 2, "four devices have no experts of their own"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same checkpoint as an Orbax tree."""
    folder = tmp_path_factory.mktemp("orbax")
    values = {path: np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(reading.model("window6").params)}
    for file in FOLDER.glob("*.json"):
        if not file.name.endswith("index.json"):
            (folder / file.name).write_bytes(file.read_bytes())
    orbax.save_part(folder / "orbax", values)
    orbax.finish(folder / "orbax")
    return folder


def test_an_orbax_tree_restores_onto_the_mesh(tree: Path) -> None:
    check(dgemma_jax.load(tree, dtype="float32", mesh=MESH))


@pytest.mark.parametrize("kind", KINDS)
def test_quantised_parts_are_those_of_one_device_whatever_they_come_from(
    kind: Kind, tree: Path, sizes: dict[str, list[int]]
) -> None:
    whole = dgemma_jax.load(FOLDER, dtype="float32", quantize=kind)
    sizes.clear()
    spread = dgemma_jax.load(FOLDER, dtype="float32", quantize=kind, mesh=MESH)
    files = TensorFiles.open(FOLDER)
    assert all(sum(parts) == np.prod(files.shape(name)) for name, parts in sizes.items()), "each byte is read once"
    loaded = quantize_parameters(dgemma_jax.load(FOLDER, dtype="float32", mesh=MESH).params, kind, spread.mesh)
    restored = dgemma_jax.load(tree, dtype="bfloat16", quantize=kind, mesh=MESH)
    for found in (spread.params, loaded):
        jax.tree.map(np.testing.assert_array_equal, jax.tree.leaves(found), jax.tree.leaves(whole.params))
        assert jax.tree.map(lambda x: x.sharding, found) == jax.tree.map(lambda x: x.sharding, spread.params)
    for (_, ours), (_, theirs) in zip(*map(nnx.to_flat_state, (restored.params, spread.params)), strict=True):
        if isinstance(theirs[...], Quantized):
            jax.tree.map(np.testing.assert_array_equal, ours[...], theirs[...])


def test_a_mesh_that_does_not_fit_is_refused_before_weights_are_read() -> None:
    with pytest.raises(ValueError, match="expert=4 does not divide the model's 6 experts"):
        dgemma_jax.load(FOLDER, mesh="expert=4")


def test_the_dtype_is_made_part_by_part() -> None:
    model = dgemma_jax.load(FOLDER, dtype="bfloat16", mesh="expert=2")
    assert {leaf.dtype for leaf in jax.tree.leaves(model.params)} == {jnp.dtype("bfloat16")}
