"""Our Orbax layout: the same parameters as the safetensors they came from, on any sharding, and nothing left unsaid."""

from __future__ import annotations

import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import reading
from jax.sharding import NamedSharding, PartitionSpec

import dgemma_jax
from dgemma_jax.checkpoint import orbax
from dgemma_jax.checkpoint.load import ORBAX_FOLDER
from dgemma_jax.checkpoint.names import Entry, entries
from dgemma_jax.checkpoint.safetensors import CheckpointError, TensorFiles
from dgemma_jax.config_json import read_model_config

TINY = reading.FOLDER / "window6"
TABLE = list(entries(read_model_config(TINY)))


def tensors(table: list[Entry]) -> dict:
    files = TensorFiles.open(TINY)
    return {entry.path: files.read(entry.name).reshape(entry.shape) for entry in table}


def write(folder: Path, changed: dict) -> Path:
    folder.mkdir(exist_ok=True)
    for name in ("config.json", "generation_config.json"):
        shutil.copyfile(TINY / name, folder / name)
    orbax.save_part(folder / ORBAX_FOLDER, changed)
    orbax.finish(folder / ORBAX_FOLDER)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("orbax"), tensors(TABLE))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_loads_to_the_parameters_of_the_safetensors(dtype: str, folder: Path) -> None:
    found, wanted = dgemma_jax.load(folder, dtype=dtype), dgemma_jax.load(TINY, dtype=dtype)
    assert jax.tree.structure(found.params) == jax.tree.structure(wanted.params)
    for ours, theirs in zip(jax.tree.leaves(found.params), jax.tree.leaves(wanted.params), strict=True):
        assert (ours.dtype, ours.sharding) == (theirs.dtype, theirs.sharding)
        np.testing.assert_array_equal(ours, theirs)


def test_it_restores_onto_shards(folder: Path) -> None:
    mesh = jax.make_mesh((2,), ("expert",))
    whole, experts = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("expert"))
    shardings = {entry.path: experts if entry.part == "experts" else whole for entry in TABLE}
    targets = {
        entry.path: jax.ShapeDtypeStruct(entry.shape, jnp.float32, sharding=shardings[entry.path]) for entry in TABLE
    }
    found = orbax.restore(folder / ORBAX_FOLDER, targets)
    for path, value in tensors(TABLE).items():
        assert found[path].sharding == shardings[path]
        np.testing.assert_array_equal(found[path], value)


def test_a_device_reads_small_chunks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(orbax, "CHUNK_BYTES", 4096)
    entry = next(entry for entry in TABLE if entry.part == "experts")
    where = tmp_path / ORBAX_FOLDER
    orbax.save_part(where, tensors([entry]))
    orbax.finish(where)
    (leaf,) = jax.tree.leaves(orbax.ocp.metadata(where).metadata)
    assert np.prod(leaf.storage_metadata.chunk_shape) * 4 <= 4096 < entry.size * 4


def test_all_that_does_not_fit_is_named_at_once(tmp_path: Path) -> None:
    changed = {entry.path: value for entry, value in zip(TABLE, tensors(TABLE).values(), strict=True)}
    del changed[("text", "layers", 1, "router", "scale_D")]
    changed[("text", "norm", "scale")] = changed[("text", "norm", "scale")][:-1]
    changed[("text", "extra")] = np.zeros(3, np.float32)
    with pytest.raises(CheckpointError) as caught:
        dgemma_jax.load(write(tmp_path, changed))
    said = str(caught.value)
    assert "- text.layers.1.router.scale_D (32,) (model has it, checkpoint does not)" in said
    assert "+ text.extra" in said
    assert "! text.norm.scale: wanted (32,), found (31,)" in said


def test_parts_are_no_checkpoint_before_they_are_finished(tmp_path: Path) -> None:
    shutil.copyfile(TINY / "config.json", tmp_path / "config.json")
    where = tmp_path / ORBAX_FOLDER
    orbax.save_part(where, tensors(TABLE[:3]))
    assert orbax.saved_parts(where) == {orbax.key_of(entry.path) for entry in TABLE[:3]}
    with pytest.raises(CheckpointError, match="has no weights"):
        dgemma_jax.load(tmp_path)


def test_finishing_that_was_cut_short_begins_again(tmp_path: Path) -> None:
    where = tmp_path / ORBAX_FOLDER
    orbax.save_part(where, tensors(TABLE[:3]))
    (part,) = (tmp_path / "orbax.partial_save").iterdir()
    shutil.move(part / "state", part.parent / "state")
    assert orbax.saved_parts(where) == set()


@pytest.mark.parametrize("files", ["state/d/*", "state/*/d/*"], ids=["nodes", "values"])
def test_a_damaged_tree_is_named_in_one_line(files: str, folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    damaged = list((copy / ORBAX_FOLDER).glob(files))
    for file in damaged:
        file.unlink()
    with pytest.raises(CheckpointError) as caught:
        dgemma_jax.load(copy)
    said = str(caught.value)
    assert said.startswith(f"{copy / ORBAX_FOLDER} is no Orbax checkpoint that can be read") and "\n" not in said
    assert any(f"{file} is missing" in said for file in damaged)
