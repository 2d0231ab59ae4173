"""The command lines: what they print, and one clear message with exit code 2 for what does not fit."""

import argparse
import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest

import dgemma_jax
from dgemma_jax.checkpoint.safetensors import TensorFiles
from dgemma_jax.checkpoint.safetensors_writing import write_tensors
from dgemma_jax.config_json import read_model_config
from dgemma_jax.training import lora, scoring
from dgemma_jax.training.demo.acceptance import Score, Skill, shortfalls
from dgemma_jax.training.demo.batching import Answered
from dgemma_jax.training.demo.run import DemoRun
from dgemma_jax.training.lora import LoraConfig
from dgemma_jax.training.optimizer import OptimizerConfig
from dgemma_jax.training.rows import Row
from dgemma_jax.training.sft import SftConfig
from serve.config import ServeConfig
from tools import inspect, synthetic, train, train_eval, train_sft
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


def test_a_demo_run_is_not_continued_with_another_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.json").write_text('{"kind": "demo", "steps": 5, "seed": 0}')
    assert "- seed: 0 there, 1 now" in refused(capsys, train, "demo", "--out", str(tmp_path), "--steps=5", "--seed=1")


@pytest.mark.parametrize("kept", [True, False])
def test_a_demo_run_that_learned_too_little_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: bool) -> None:
    asked = {}

    def score_skills(score: Callable[[list], Score], count: int) -> tuple[dict, bool]:
        asked["count"] = count
        return {}, kept

    monkeypatch.setattr(DemoRun, "train", DemoRun.save)
    monkeypatch.setattr(train_eval, "score_skills", score_skills)
    given = ["demo", "--out", str(tmp_path), "--initial", str(DEMO), "--steps=1", "--questions=7"]
    assert train.main(given) == (0 if kept else 1)
    assert asked == {"count": 7}


def test_a_demo_run_is_not_continued_with_other_generators(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(DemoRun, "train", lambda self: None)
    given = ["demo", "--out", str(tmp_path), "--initial", str(DEMO), "--steps=1", "--questions=0"]
    assert train.main(given) == 0 and capsys.readouterr().out
    monkeypatch.setattr("dgemma_jax.training.run_folder.source_hash", lambda package: "another")
    assert "- generators: " in refused(capsys, train, *given)


def test_what_is_less_than_promised_is_said_in_words() -> None:
    good = Score(right=98, formed=100, thoughts=97, count=100, steps=3.0, early=0.95, unparsed=0, wrong=())
    assert shortfalls(Skill(("lists",), 0.97), good) == []
    assert shortfalls(Skill(("lists",), 0.98), good) == ["right thoughts 0.970 (wanted 0.98)"]
    assert shortfalls(Skill(("lists",), 0.97), good, 0.99)[0] == "right 0.980 (wanted 0.99)"
    bad = dataclasses.replace(good, early=0.8, unparsed=1, formed=99)
    assert [said.split(" 0")[0] for said in shortfalls(Skill(("lists",), 0.9), bad)] == [
        "formed",
        "early stops",
        "JSON that parses",
    ]


def test_an_unknown_skill_is_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert "unknown skill nope; known are conversation" in refused(
        capsys, train, "eval", "--checkpoint", str(DEMO), "--skill", "nope"
    )


def test_every_flag_of_sft_reaches_the_run() -> None:
    flags = "--method full --freeze router,vision --optimizer muon --steps 9 --batch 6 --accum 2 --lr 0.5 --warmup 3"
    flags += " --weight-decay 0.1 --clip 2 --ema 0.9 --seed 4 --mesh data=3 --remat --max-length 99 --noise-copies 2"
    flags += " --t-min 0.1 --ar-weight 0.2 --prompt-weight 0.3 --fill-weight 0.4 --save-every 5 --keep 7 --log-every 8"
    given = ["sft", "--model", "m", "--data", "d", "--eval-data", "e", "--out", "o", "--dtype", "float32"]
    found = train_sft.settings(train.parser().parse_args([*given, *flags.split()]))
    optimizer = OptimizerConfig(
        name="muon", steps=9, learning_rate=0.5, warmup=3, weight_decay=0.1, clip=2.0, accumulate=2, average=0.9
    )
    assert found == SftConfig(
        model=Path("m"), data=Path("d"), eval_data=Path("e"), out=Path("o"), optimizer=optimizer, lora=None,
        freeze=("router", "vision"), batch=6, max_length=99, dtype="float32", seed=4, copies=2, t_min=0.1,
        next_token_weight=0.2, prompt_weight=0.3, fill_weight=0.4, remat=True, mesh="data=3", save_every=5, keep=7,
        log_every=8,
    )  # fmt: skip


def test_the_adapter_of_sft_is_described_by_flags() -> None:
    flags = ["--lora-rank", "4", "--lora-alpha", "8", "--lora-targets", "mlp,experts"]
    found = train_sft.settings(train.parser().parse_args(["sft", "--data", "d", "--out", "o", *flags]))
    assert found.lora == LoraConfig(rank=4, alpha=8.0, targets=("mlp", "experts"))
    assert found.model == DEMO


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--batch", "3"], "multiple of 2"),
        (["--lora-targets", "heads"], "must be of attention"),
        ([], "line 1: not JSON"),
    ],
)
def test_sft_refuses_what_cannot_be_before_it_loads_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], said: str
) -> None:
    data = tmp_path / "chat.jsonl"
    data.write_text("nonsense\n")
    assert said in refused(capsys, train, "sft", "--data", str(data), "--out", str(tmp_path / "run"), *flags)
    assert not (tmp_path / "run").exists()


def test_the_page_on_fine_tuning_names_only_flags_that_are() -> None:
    page = (DEMO.parents[1] / "docs" / "fine-tuning.md").read_text(encoding="utf-8")
    known = {"--model", "--help", *(f"--{flag.name}" for flag in dataclasses.fields(ServeConfig))}
    commands = next(a for a in train.parser()._actions if isinstance(a, argparse._SubParsersAction)).choices.values()
    known |= {flag for command in commands for flag in command._option_string_actions}
    assert set(re.findall(r"--[a-z][a-z-]*", page)) <= known


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """One that changes the dense feed-forward blocks of the tiny checkpoint."""
    made = lora.fresh(read_model_config(TINY), LoraConfig(rank=2, targets=("mlp",), base=str(TINY)), seed=0)
    lora.save(tmp_path / "adapter", lora.Adapter(made.config, jax.tree.map(lambda x: x + 0.1, made.params)))
    return tmp_path / "adapter"


def test_a_merged_adapter_is_a_checkpoint_of_the_same_weights(
    tmp_path: Path, adapter: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "merged"
    given = ["export", "--model", str(adapter), "--merge-lora", "--out", str(out), "--dtype", "float32"]
    assert train.main(given) == 0 and capsys.readouterr().out == f"{out}\n"
    merged, served = (
        dgemma_jax.load(folder, dtype="float32", lora=added) for folder, added in ((out, None), (TINY, adapter))
    )
    jax.tree.map(np.testing.assert_array_equal, merged.params, served.params)
    assert train.main(["export", "--model", str(out), "--out", str(tmp_path / "again"), "--dtype", "float32"]) == 0
    assert (tmp_path / "again/model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()


def test_export_says_what_to_do_with_an_adapter(
    tmp_path: Path, adapter: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "out")]
    assert "give --merge-lora" in refused(capsys, train, "export", "--model", str(adapter), *out)
    assert "holds no adapter" in refused(capsys, train, "export", "--model", str(TINY), "--merge-lora", *out)
    elsewhere = ["--merge-lora", "--base", str(tmp_path)]
    assert "name it with --base" in refused(capsys, train, "export", "--model", str(adapter), *elsewhere, *out)
    assert "holds a checkpoint already" in refused(capsys, train, "export", "--model", str(TINY), "--out", str(TINY))


def test_export_writes_the_mean_of_checkpoints(tmp_path: Path, adapter: Path) -> None:
    def export(out: str, *flags: str) -> dict[str, np.ndarray]:
        assert train.main(["export", "--out", str(tmp_path / out), "--dtype", "float32", *flags]) == 0
        files = TensorFiles.open(tmp_path / out)
        return {name: np.array(files.read(name)) for name in files.names}

    merged = export("merged", "--model", str(adapter), "--merge-lora")
    two = ("--average-with", str(tmp_path / "merged"), "--average-with", str(tmp_path / "merged"))
    mean = export("mean", "--model", str(TINY), *two)
    assert any((merged[name] != x).any() for name, x in tensors().items())
    for name, x in tensors().items():
        np.testing.assert_allclose(mean[name], (x + 2 * merged[name]) / 3, rtol=1e-6, atol=1e-7)


def test_export_averages_no_other_model_and_no_adapter(
    tmp_path: Path, adapter: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ("--out", str(tmp_path / "out"))
    other = refused(capsys, train, "export", "--model", str(TINY), "--average-with", str(DEMO), *out)
    assert "describes another model" in other
    both = ("--merge-lora", "--average-with", str(TINY))
    assert "export one, then the other" in refused(capsys, train, "export", "--model", str(adapter), *both, *out)


def test_eval_compares_answers_with_a_file_and_fails_below_the_least(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "e.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"Say {word}.", "completion": word}) + "\n" for word in "ab"))
    monkeypatch.setattr(
        scoring, "answer_all", lambda model, rows, most: [Answered(list(rows[0].answer), [3])] * len(rows)
    )
    given = ["eval", "--checkpoint", str(DEMO), "--data", str(data), "--json"]
    assert train.main([*given, "--least", "0.6"]) == 1
    printed = capsys.readouterr()
    assert json.loads(printed.out) == {"share": 0.5, "count": 2, "steps": 3.0}
    assert "line 2: wanted 'b', found 'a'" in printed.err
    assert train.main([*given, "--least", "0.5"]) == 0


def test_eval_lets_an_answer_be_longer_than_the_one_it_is_compared_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, given = tmp_path / "long.jsonl", []
    data.write_text(json.dumps({"prompt": "Count.", "completion": " ".join(map(str, range(200)))}) + "\n")

    def answer_all(model: object, rows: list[Row], most: int) -> list[Answered]:
        given.append(most - len(rows[0].answer))
        return [Answered(list(rows[0].answer), [1])]

    monkeypatch.setattr(scoring, "answer_all", answer_all)
    assert train.main(["eval", "--checkpoint", str(DEMO), "--data", str(data), "--least", "1"]) == 0
    assert given == [32]


@pytest.mark.parametrize("number", ["-1", str(2**63), "x"])
def test_a_seed_that_is_none_is_refused_by_its_flag(number: str, capsys: pytest.CaptureFixture[str]) -> None:
    for given in (["sft", "--data", "a", "--out", "b"], ["demo", "--out", "b"]):
        with pytest.raises(SystemExit):
            train.main([*given, "--seed", number])
        assert "argument --seed" in capsys.readouterr().err


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
