"""The command lines: what they print, and one clear message with exit code 2 for what does not fit."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from dgemma_jax.checkpoint.safetensors import TensorFiles, write_tensors
from tools import inspect, synthetic, train
from tools.paths import DEMO

TINY = Path(__file__).parent / "golden" / "text_only"


def tensors() -> dict[str, np.ndarray]:
    files = TensorFiles.open(TINY)
    return {name: np.array(files.read(name)) for name in files.names}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A checkpoint of its own, to be damaged."""
    folder = tmp_path / "copy"
    shutil.copytree(TINY, folder)
    return folder


def refused(capsys: pytest.CaptureFixture[str], tool, *arguments: str) -> str:
    """What a tool says on stderr when it ends with code 2."""
    assert tool.main(list(arguments)) == 2
    printed = capsys.readouterr()
    assert not printed.out
    return printed.err


def test_inspect_accounts_for_every_tensor(capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect.main([str(TINY), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["files"]["tensors"] == found["tensors"] == len(tensors())
    assert found["parameters"] == sum(found["parts"].values()) == sum(value.size for value in tensors().values())


def test_inspect_knows_what_the_published_checkpoint_must_hold(capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect.main(["--preset", "26b-a4b"]) == 0
    assert "51,647,562,456 bytes in bfloat16, 1047 tensors" in capsys.readouterr().out


def test_a_folder_that_is_not_there_is_named_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, inspect, str(tmp_path / "nothing"))
    assert f"{tmp_path / 'nothing'} does not exist" in said and said.count("\n") == 1


def test_a_truncated_file_is_named_in_one_line(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    said = refused(capsys, inspect, str(copy))
    assert "model.safetensors" in said and "truncated" in said and said.count("\n") == 1


def test_tensors_that_do_not_fit_are_all_named_at_once(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed = tensors()
    changed["model.decoder.norm.weight"] = changed["model.decoder.norm.weight"][:-1]
    changed["model.decoder.extra"] = np.zeros(3, np.float32)
    del changed["model.decoder.layers.0.router.scale"]
    write_tensors(copy / "model.safetensors", changed)
    said = refused(capsys, inspect, str(copy))
    assert "- model.decoder.layers.0.router.scale" in said
    assert "+ model.decoder.extra" in said
    assert "! model.decoder.norm.weight: wanted" in said


@pytest.mark.parametrize("equal", [True, False])
def test_a_separate_head_is_accepted_only_where_it_is_the_embedding(
    copy: Path, equal: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = tensors()
    changed["lm_head.weight"] = changed["model.decoder.embed_tokens.weight"] + np.float32(0 if equal else 1)
    write_tensors(copy / "model.safetensors", changed)
    assert inspect.main([str(copy)]) == (0 if equal else 2)
    assert ("lm_head.weight" in capsys.readouterr().err) is not equal


def test_training_does_not_overwrite_a_checkpoint(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "holds a checkpoint already" in refused(capsys, train, "demo", "--out", str(copy), "--steps", "1")


def test_an_unknown_family_is_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert "unknown family nope; known are greetings" in refused(
        capsys, train, "eval", "--checkpoint", str(DEMO), "--family", "nope"
    )


def test_a_synthetic_checkpoint_does_not_replace_another(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (copy / "config.json").read_bytes()
    assert "already" in refused(capsys, synthetic, str(copy))
    assert (copy / "config.json").read_bytes() == before


@pytest.mark.parametrize("tool", [inspect, train, synthetic])
def test_every_tool_explains_itself(tool, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        tool.main(["--help"])
    assert ended.value.code == 0
    assert f"python -m {tool.__name__}" in capsys.readouterr().out
