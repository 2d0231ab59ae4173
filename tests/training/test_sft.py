"""Fine-tuning runs: they resume exactly, train only what they should, and leave folders that can be served."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chats import chat, write_rows
from flax import nnx

import dgemma_jax
from dgemma_jax.checkpoint.load import load_parameters
from dgemma_jax.checkpoint.names import entries
from dgemma_jax.config_json import read_model_config
from dgemma_jax.training import lora, sft
from dgemma_jax.training.dataset import Dataset
from dgemma_jax.training.evaluation import evaluate
from dgemma_jax.training.lora import LoraConfig
from dgemma_jax.training.optimizer import OptimizerConfig
from dgemma_jax.training.run_folder import RunError
from dgemma_jax.training.sft import SftConfig, SftRun
from dgemma_jax.training.trainer import Trainer

STEPS = 6
Configure = Callable[..., SftConfig]
METHODS = pytest.mark.parametrize("adapter", [LoraConfig(rank=2, alpha=4.0), None], ids=["lora", "full"])


@pytest.fixture(autouse=True)
def _compile_once(monkeypatch: pytest.MonkeyPatch, trainers: dict) -> None:
    """Runs of one kind share a trainer, which each gets as new: what compiles, compiles once."""
    make = sft.make_trainer

    def shared(config: SftConfig, model) -> Trainer:
        key = (config.lora, config.freeze, config.optimizer)
        if key not in trainers:
            trainer = make(config, model)
            trainers[key] = trainer, jax.tree.map(np.array, trainer.state)
        trainer, start = trainers[key]
        trainer.state = jax.device_put(jax.tree.map(np.copy, start), jax.devices()[0])  # where a restored state is too
        return trainer

    monkeypatch.setattr(sft, "make_trainer", shared)


@pytest.fixture(scope="module")
def trainers() -> dict:
    return {}


@pytest.fixture
def configure(tinier: Path, tmp_path: Path) -> Configure:
    """Settings of a short run over eleven rows of one shape."""
    rows = [chat(f"Say {number}", str(number)) for number in range(11)]
    data = write_rows(tmp_path / "chat.jsonl", rows)

    def settings(out: str, **changes) -> SftConfig:
        optimizer = OptimizerConfig(steps=STEPS, learning_rate=1e-2, warmup=2, average=0.9)
        values = dict(model=tinier, data=data, out=tmp_path / out, optimizer=optimizer, batch=4, max_length=128)
        return SftConfig(**{**values, "dtype": "float32", "save_every": 2, "log_every": 1, **changes})

    return settings


def lines(folder: Path) -> Iterator[dict]:
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        yield {name: value for name, value in row.items() if name not in ("seconds", "tokens_per_second")}


@METHODS
def test_a_run_that_was_killed_ends_as_one_that_was_not(configure, monkeypatch, adapter) -> None:
    whole = SftRun(configure("whole", lora=adapter))
    whole.train()
    wanted = jax.tree.map(np.array, whole.trainer.state)
    killed = configure("killed", lora=adapter)
    run, step = SftRun(killed), Trainer.step

    def dies_in_the_sixth(trainer: Trainer, *arguments):
        if int(trainer.state.step) == 5:
            raise KeyboardInterrupt
        return step(trainer, *arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "step", dies_in_the_sixth)
        run.train()
    again = SftRun(killed)
    assert again.step == 4
    again.train()
    jax.tree.map(np.testing.assert_array_equal, again.trainer.state, wanted)
    assert list(lines(killed.out)) == list(lines(whole.config.out))
    name = lora.WEIGHTS_FILE if adapter else "model.safetensors"
    assert (killed.out / name).read_bytes() == (whole.config.out / name).read_bytes()


def test_a_finished_run_is_done(configure) -> None:
    config = configure("done", lora=LoraConfig(rank=2, alpha=4.0))
    SftRun(config).train()
    before = list(lines(config.out))
    assert SftRun(config).train() == {}
    assert list(lines(config.out)) == before


def test_lora_learns_only_its_adapter_and_what_is_saved_is_what_was_trained(configure, tinier) -> None:
    run = SftRun(configure("run", lora=LoraConfig(rank=2, alpha=4.0)))
    before = jax.tree.map(np.asarray, run.trainer.frozen)
    run.train()
    jax.tree.map(np.testing.assert_array_equal, run.trainer.frozen, before)
    model = dgemma_jax.load(tinier, dtype="float32", lora=run.config.out)
    jax.tree.map(np.testing.assert_array_equal, model.params, run.trainer.parameters())


def test_full_training_leaves_frozen_parts_and_writes_a_whole_checkpoint(configure, tinier) -> None:
    config = configure("run", lora=None)
    SftRun(config).train()
    model = read_model_config(tinier)
    before, after = (
        dict(nnx.to_flat_state(load_parameters(folder, model, jnp.dtype("bfloat16"), "all_experts")[1]))
        for folder in (tinier, config.out)
    )
    for entry in entries(model):
        same = np.array_equal(before[entry.path][...], after[entry.path][...])
        assert same is (entry.part in ("router", "layer scalars")), entry.name
    assert (config.out / "chat_template.jinja").is_file() and (config.out / "tokenizer.json").is_file()


def test_constants_of_the_architecture_are_never_trained(tiny) -> None:
    model = read_model_config(tiny)
    params = load_parameters(tiny, model, jnp.dtype("float32"), "all_experts")[1]
    trained, frozen = sft.split_trained(params, model, ())
    leaves = {str(path[-1]) for path, _ in nnx.to_flat_state(frozen)}
    assert leaves == {"encoder_scalar_1", "decoder_scalar_1", "standard_bias_W", "standard_scale_W"}
    assert len(nnx.to_flat_state(trained)) + len(nnx.to_flat_state(frozen)) == len(list(entries(model)))


def test_the_loss_on_held_out_rows_falls_and_counts_each_row_once(configure, tmp_path) -> None:
    rows = [chat(f"Say {number}", str(number)) for number in range(5)]  # a whole batch, and one row more
    files = [write_rows(tmp_path / "eval.jsonl", rows)]
    files += [write_rows(tmp_path / f"{number}.jsonl", [row]) for number, row in enumerate(rows)]
    run = SftRun(configure("run", lora=LoraConfig(rank=2, alpha=4.0), eval_data=files[0]))
    run.train()
    found = [row["eval_next_token"] for row in lines(run.config.out) if "eval_next_token" in row]
    assert len(found) == 1 + STEPS // 2 and found[-1] < found[0]

    def next_token(file: Path) -> float:
        data = Dataset.read(file, run.chat, 128)
        goal = run.config.objective
        return evaluate(run.trainer, data, run.buckets, run.chat.config, run.fill, goal)["next_token"]

    whole, *alone = map(next_token, files)
    np.testing.assert_allclose(whole, np.mean(alone), rtol=1e-5)


def test_other_settings_in_the_same_folder_are_refused_by_name(configure, tmp_path) -> None:
    SftRun(configure("run", seed=0))
    with pytest.raises(RunError, match=r"(?s)other settings.*- batch: 4 there, 2 now.*- seed: 0 there, 1 now"):
        SftRun(configure("run", seed=1, batch=2))
    write_rows(tmp_path / "chat.jsonl", [chat("New", "data")])
    with pytest.raises(RunError, match="data_sha256"):
        SftRun(configure("run", seed=0))


def test_a_folder_that_holds_something_else_is_refused(configure, tinier) -> None:
    with pytest.raises(RunError, match="holds a checkpoint already"):
        SftRun(configure(str(tinier)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"batch": 3}, "multiple of 2"),
        ({"freeze": ("all",)}, "freeze must be of router"),
        ({"t_min": 1.5}, "t_min must be at least 0 and below 1, found 1.5"),
        ({"t_min": -0.1}, "t_min"),
        ({"fill_weight": -1.0}, "fill_weight must not be negative"),
        ({"next_token_weight": float("nan")}, "next_token_weight"),
    ],
)
def test_settings_that_cannot_be_are_refused(configure, change, said) -> None:
    with pytest.raises(ValueError, match=said):
        configure("run", **change)


def test_a_run_that_is_killed_before_its_first_save_begins_its_metrics_anew(configure, tmp_path, monkeypatch) -> None:
    held = write_rows(tmp_path / "eval.jsonl", [chat("Say 1", "1")])
    monkeypatch.setattr(SftRun, "_update", lambda self, interval: 1 / 0)
    for _ in range(2):
        run = SftRun(configure("run", lora=LoraConfig(rank=2, alpha=4.0), eval_data=held))
        with pytest.raises(ZeroDivisionError):
            run.train()
        assert [line["step"] for line in lines(run.config.out)] == [0]
