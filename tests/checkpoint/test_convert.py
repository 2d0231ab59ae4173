"""`tools.convert`: bits stay bits, what was stopped goes on, and nothing else is overwritten."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import released_tree
from golden import reading

import dgemma_jax
from dgemma_jax.checkpoint import hub
from dgemma_jax.checkpoint.load import load_parameters
from dgemma_jax.checkpoint.quantize import KINDS, Kind
from dgemma_jax.checkpoint.safetensors import CheckpointError, TensorFiles
from dgemma_jax.config_json import read_model_config
from tools import convert, convert_layouts, inspect

TINY = reading.FOLDER / "window6"
Usage = namedtuple("Usage", "total used free")


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict:
    """What a conversion reports."""
    assert convert.main([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The last thing a conversion says before it ends with code 2: behind its progress."""
    assert convert.main([*map(str, arguments)]) == 2
    printed = capsys.readouterr()
    assert not printed.out
    return "convert: " + printed.err.split("convert: ")[-1]


def bits(folder: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    files = TensorFiles.open(folder)
    return {name: (files.dtype(name).name, files.shape(name), files.read(name).tobytes()) for name in files.names}


@pytest.mark.parametrize("name", ["window6", "clipped"])
def test_there_and_back_is_exact_to_the_bit(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = reading.FOLDER / name
    there = run(capsys, source, tmp_path / "orbax")
    assert there["layouts"] == ["safetensors", "orbax"]
    back = run(capsys, tmp_path / "orbax", tmp_path / "back", "--max-shard-size", "50KB")
    assert back["layouts"] == ["orbax", "safetensors"] and back["parts"] > 3
    assert bits(tmp_path / "back") == bits(source)
    assert there["bytes"] == back["bytes"] == TensorFiles.open(source).nbytes
    for file in ("config.json", "generation_config.json"):
        assert (tmp_path / "back" / file).read_bytes() == (source / file).read_bytes()


@pytest.mark.parametrize("layout", ["safetensors", "orbax"])
def test_what_was_stopped_goes_on(
    layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = convert_layouts.TARGETS[layout]
    write, written = target.write, []

    def write_two(self, number: int, tensors: convert_layouts.Tensors) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        write(self, number, tensors)
        written.append(number)

    command = (TINY, tmp_path / "out", "--to", layout, "--max-shard-size", "60KB")
    with monkeypatch.context() as patch:
        patch.setattr(target, "write", write_two)
        assert convert.main([*map(str, command)]) == 130
    assert "goes on when the same command is given again" in capsys.readouterr().err
    assert not (tmp_path / "out" / "config.json").exists()
    result = run(capsys, *command)
    assert result["parts_before"] == 2 < result["parts"]
    found, wanted = dgemma_jax.load(tmp_path / "out", dtype="float32"), reading.model("window6")
    for ours, theirs in zip(leaves(found), leaves(wanted), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def leaves(model: dgemma_jax.Model) -> list[np.ndarray]:
    return jax.tree.leaves(model.params)


@pytest.mark.parametrize("kind", KINDS)
def test_quantised_weights_are_restored_to_the_bit_onto_any_mesh(
    kind: Kind, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = run(capsys, TINY, tmp_path / "out", "--quantize", kind, "--dtype", "bfloat16", "--max-shard-size", "15KB")
    assert made["quantised"] == kind and made["parts"] > 3
    wanted = dgemma_jax.load(TINY, dtype="bfloat16", quantize=kind)
    assert made["bytes"] == sum(leaf.nbytes for leaf in jax.tree.leaves(wanted.params))
    for mesh in (None, "expert=2", "data=2,expert=2,model=2"):
        found = dgemma_jax.load(tmp_path / "out", mesh=mesh)
        for ours, theirs in zip(jax.tree.leaves(found.params), jax.tree.leaves(wanted.params), strict=True):
            assert ours.dtype == theirs.dtype
            np.testing.assert_array_equal(ours, theirs)
        again = dgemma_jax.load(TINY, dtype="bfloat16", quantize=kind, mesh=mesh)
        assert jax.tree.structure(found.params) == jax.tree.structure(again.params)
        assert [x.sharding for x in jax.tree.leaves(found.params)] == [
            x.sharding for x in jax.tree.leaves(again.params)
        ]
    copied = run(capsys, tmp_path / "out", tmp_path / "copy", "--to", "orbax")
    assert copied["quantised"] == kind and copied["bytes"] == made["bytes"]


def test_quantised_weights_go_nowhere_but_to_orbax(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, TINY, tmp_path / "out", "--quantize", "int8", "--to", "safetensors")
    assert "safetensors has no place for matrices in int8" in said and not (tmp_path / "out").exists()
    run(capsys, TINY, tmp_path / "out", "--quantize", "int8")
    assert "no place for matrices in int8" in refused(capsys, tmp_path / "out", tmp_path / "back")
    said = refused(capsys, tmp_path / "out", tmp_path / "back", "--to", "orbax", "--quantize", "int4")
    assert "holds matrices in int8; int4 is made of full ones" in said and not (tmp_path / "back").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"quantize": "int4"}, "holds matrices in int8, which is the only quantize for it; found 'int4'"),
        ({"lora": "adapter"}, "holds matrices in int8, and an adapter is added to full ones"),
        ({"backend": "ragged_dot"}, "ragged_dot needs full weights"),
    ],
)
def test_what_needs_full_weights_is_refused_for_quantised_ones(
    arguments: dict[str, str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, TINY, tmp_path / "out", "--quantize", "int8")
    with pytest.raises(ValueError, match=says):
        dgemma_jax.load(tmp_path / "out", **arguments)
    with pytest.raises(CheckpointError, match="holds matrices in int8, wanted full ones"):  # as training reads them
        load_parameters(tmp_path / "out", read_model_config(TINY), jnp.dtype("float32"), "all_experts")


def test_another_conversion_is_not_mixed_into_the_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, TINY, tmp_path / "out", "--to", "safetensors")
    said = refused(capsys, TINY, tmp_path / "out", "--to", "safetensors", "--dtype", "bfloat16")
    assert "holds another conversion" in said and "- dtype: None there, bfloat16 now" in said


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(TINY, tmp_path / "mine")
    before = bits(tmp_path / "mine")
    assert "is there already" in refused(capsys, reading.FOLDER / "clipped", tmp_path / "mine")
    assert bits(tmp_path / "mine") == before and not (tmp_path / "mine" / "conversion.json").exists()


@pytest.mark.parametrize("out", ["x/..", "x/../.", "orbax", "."])
def test_the_source_itself_is_left_alone(out: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(TINY, tmp_path / "mine")
    before = sorted(tmp_path.rglob("*"))
    assert "choose another folder" in refused(capsys, tmp_path / "mine", tmp_path / "mine" / out)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_dtype_is_what_config_and_tensors_then_have(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, TINY, tmp_path / "out", "--to", "safetensors", "--dtype", "bfloat16")
    assert {dtype for dtype, _, _ in bits(tmp_path / "out").values()} == {"bfloat16"}
    stated = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "dtype" in json.loads((TINY / "config.json").read_text())
    assert stated["dtype"] == stated["text_config"].get("dtype", "bfloat16") == "bfloat16"


def test_a_flipped_bit_is_found_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = (TINY, tmp_path / "out", "--to", "safetensors")
    run(capsys, *command)
    weights = tmp_path / "out" / "model.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-1] ^= 1
    weights.write_bytes(damaged)
    last = next(name for name, value in bits(tmp_path / "out").items() if value != bits(TINY)[name])
    assert f"tensor {last} is not what {TINY} holds" in refused(capsys, *command)


def test_deepminds_tree_becomes_a_checkpoint_with_the_tokenizer_of_another_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    described = tmp_path / "described"
    described.mkdir()
    shutil.copyfile(TINY / "config.json", described / "config.json")
    (described / "chat_template.jinja").write_text("the template")
    made = released_tree.leaves_of(TINY, read_model_config(TINY))
    tree = released_tree.write(tmp_path / "tree", released_tree.nested(made))
    result = run(capsys, tree, tmp_path / "out", "--config", described)
    assert result["layouts"] == ["deepmind", "safetensors"]
    wanted = bits(TINY)
    assert bits(tmp_path / "out") == {
        name: wanted[name.replace("encoder.language_model", "decoder")] for name in wanted
    }
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "the template"


def test_deepminds_tree_of_other_shapes_is_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = released_tree.write(tmp_path / "tree", {"final_norm": np.zeros(4, np.float32)})
    said = refused(capsys, tree, tmp_path / "out", "--config", TINY)
    assert "! final_norm: wanted (32,), found (4,)" in said
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_said_before_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hub.shutil, "disk_usage", lambda _: Usage(10**9, 10**9, 1000))
    assert "0.0 GB free" in refused(capsys, TINY, tmp_path / "out")
    assert not list((tmp_path / "out").glob("orbax*"))


def test_a_source_that_is_not_there_is_named_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, tmp_path / "nothing", tmp_path / "out")
    assert f"{tmp_path / 'nothing'} is not a folder" in said and said.count("\n") == 1


@pytest.mark.parametrize(("text", "bytes_"), [("5GB", 5 * 10**9), ("1.5mb", 1_500_000), ("2 GiB", 2**31), ("7", 7)])
def test_sizes_are_read_as_people_write_them(text: str, bytes_: int) -> None:
    assert convert.byte_count(text) == bytes_


@pytest.mark.parametrize("command", [["--help"], ["fetch", "--help"]])
def test_it_explains_itself(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        convert.main(command)
    assert ended.value.code == 0
    assert "python -m tools.convert" in capsys.readouterr().out


def test_inspect_accounts_for_either_layout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = run(capsys, TINY, tmp_path / "orbax")
    assert inspect.main([str(tmp_path / "orbax"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["files"]
    assert (found["tensors"], found["bytes"], found["quantised"]) == (result["tensors"], result["bytes"], None)
    run(capsys, TINY, tmp_path / "bits", "--quantize", "int8")
    assert inspect.main([str(tmp_path / "bits")]) == 0
    assert "matrices in int8: all accounted for" in capsys.readouterr().out
