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
from dgemma_jax.checkpoint.safetensors import TensorFiles

FOLDER = reading.FOLDER / "window6"
MESH = "data=2,expert=2,model=2"


def check(model: dgemma_jax.Model) -> None:
    """The model is that of one device, spread."""
    assert model.mesh is not None
    jax.tree.map(np.testing.assert_array_equal, model.params, reading.model("window6").params)
    for path, leaf in nnx.to_flat_state(model.params):
        assert leaf[...].sharding == sharding.parameter_sharding(leaf, model.mesh), path


def test_safetensors_are_read_once_each_part_for_its_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    reading.model("window6")  # which is not counted
    read = TensorFiles.read_part
    shapes: dict[str, list[int]] = {}

    def counted(self: TensorFiles, name: str, *arguments) -> np.ndarray:
        part = read(self, name, *arguments)
        shapes.setdefault(name, []).append(part.size)
        return part

    monkeypatch.setattr(TensorFiles, "read_part", counted)
    check(dgemma_jax.load(FOLDER, dtype="float32", mesh=MESH))
    files = TensorFiles.open(FOLDER)
    assert {name: sum(sizes) for name, sizes in shapes.items()} == {
        name: int(np.prod(files.shape(name))) for name in files.names
    }
    assert len(shapes["model.decoder.layers.0.experts.gate_up_proj"]) == 2, "four devices have no experts of their own"


def test_an_orbax_tree_restores_onto_the_mesh(tmp_path: Path) -> None:
    whole = reading.model("window6")
    values = {path: np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(whole.params)}
    for file in FOLDER.glob("*.json"):
        if not file.name.endswith("index.json"):
            (tmp_path / file.name).write_bytes(file.read_bytes())
    orbax.save_part(tmp_path / "orbax", values)
    orbax.finish(tmp_path / "orbax")
    check(dgemma_jax.load(tmp_path, dtype="float32", mesh=MESH))


def test_a_mesh_that_does_not_fit_is_refused_before_weights_are_read() -> None:
    with pytest.raises(ValueError, match="expert=4 does not divide the model's 6 experts"):
        dgemma_jax.load(FOLDER, mesh="expert=4")


def test_the_dtype_is_made_part_by_part() -> None:
    model = dgemma_jax.load(FOLDER, dtype="bfloat16", mesh="expert=2")
    assert {leaf.dtype for leaf in jax.tree.leaves(model.params)} == {jnp.dtype("bfloat16")}
