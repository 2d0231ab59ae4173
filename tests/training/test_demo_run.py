"""Where a demo run begins, and what it reads."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dgemma_jax.checkpoint.load import load_parameters
from dgemma_jax.model.diffusion_gemma import DiffusionGemma
from dgemma_jax.prompt.tokenizer import Tokenizer
from dgemma_jax.training.demo import run
from dgemma_jax.training.demo.architecture import demo_config
from dgemma_jax.training.demo.render import TrainingRows
from dgemma_jax.training.demo.rows_ahead import CHUNK, RowsAhead
from dgemma_jax.training.demo.run import DemoRun, DemoSettings, demo_model, demo_trainer
from dgemma_jax.training.objective import Batch, Metrics, Objective
from dgemma_jax.training.run_folder import METRICS_FILE, copy_companions
from dgemma_jax.training.trainer import Trainer
from tools.paths import DEMO


def test_a_run_that_is_given_a_checkpoint_begins_with_its_weights() -> None:
    config, settings = demo_config(Tokenizer.from_folder(DEMO)), DemoSettings(steps=10)
    trainer = demo_trainer(demo_model(config, settings, Path(DEMO)), settings)
    _, shipped = load_parameters(Path(DEMO), config, jnp.dtype("float32"), "all_experts")
    begun = nnx.to_pure_dict(trainer.parameters())
    jax.tree.map(np.testing.assert_array_equal, begun, nnx.to_pure_dict(shipped))
    embedding = begun["text"]["embedding_VD"]
    fresh = demo_trainer(demo_model(config, settings), settings).parameters()
    assert not np.array_equal(embedding, nnx.to_pure_dict(fresh)["text"]["embedding_VD"])


def test_a_fresh_run_begins_with_the_towers_lessons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = []

    def learn(model: DiffusionGemma, tokenizer: Tokenizer, steps: int, seed: int) -> None:
        given.append((steps, seed))
        model.vision.patch_WP[...] = jnp.ones_like(model.vision.patch_WP[...])

    monkeypatch.setattr(run, "learn_to_see", learn)
    monkeypatch.setattr(DemoRun, "_train", lambda self: None)
    copy_companions(Path(DEMO), tmp_path)
    for _ in range(2):  # the second goes on with what the first one saved
        made = DemoRun(tmp_path, DemoSettings(steps=5, seed=4, sight=3))
        made.train()
        assert given == [(3, 4)]
        assert (nnx.to_pure_dict(made.trainer.parameters())["vision"]["patch_WP"] == 1).all()


def learn_a_little(trainer: Trainer, batch: Batch, objective: Objective) -> Metrics:
    """In place of `Trainer.step`, in no time: what is trained moves by what the batch holds and by its number."""
    state = trainer.state
    moved = float(np.sum(batch.tokens_BS) % 1009) / 1009 + int(state.step)
    trainer.state = state._replace(trained=jax.tree.map(lambda x: x + moved, state.trained), step=state.step + 1)
    return Metrics(*[jnp.float32(moved)] * len(Metrics._fields))


def test_a_run_that_was_killed_ends_as_one_that_was_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Same batches, weights and metrics, though what came after the last save was lost."""
    monkeypatch.setattr(run, "LOG_EVERY", 2)
    monkeypatch.setattr(run, "SAVE_SECONDS", 0.0)
    whole, killed = (begun(tmp_path / name) for name in ("whole", "killed"))

    def dies_in_the_fourth(trainer: Trainer, batch: Batch, objective: Objective) -> Metrics:
        if int(trainer.state.step) == 3:
            raise KeyboardInterrupt
        return learn_a_little(trainer, batch, objective)

    monkeypatch.setattr(Trainer, "step", dies_in_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    monkeypatch.setattr(Trainer, "step", learn_a_little)
    whole.train()
    again = begun(tmp_path / "killed")
    assert int(again.trainer.state.step) == 2 and again.examples < killed.examples
    again.train()
    jax.tree.map(np.testing.assert_array_equal, again.trainer.state, whole.trainer.state)
    assert again.stream.position == whole.stream.position and again.examples == whole.examples
    assert lines(tmp_path / "killed") == lines(tmp_path / "whole")


def begun(folder: Path) -> DemoRun:
    copy_companions(Path(DEMO), folder)
    return DemoRun(folder, DemoSettings(steps=6))


def lines(folder: Path) -> list[dict[str, float]]:
    """The metrics, but for the time."""
    rows = [json.loads(line) for line in (folder / METRICS_FILE).read_text().splitlines()]
    return [{name: value for name, value in row.items() if "second" not in name} for row in rows]


def test_every_row_fits_a_batch() -> None:
    rows, canvas_length = TrainingRows(Path(DEMO), seed=5), demo_config(Tokenizer.from_folder(DEMO)).canvas_length
    for row in map(rows, range(1500)):
        assert any(bucket.holds(row, canvas_length) for bucket in run.BUCKETS)


def test_half_of_every_batch_can_be_conditioned_on_a_first_prediction() -> None:
    assert all(bucket.rows % 2 == 0 for bucket in run.BUCKETS)


def test_rows_that_other_processes_make_ahead_are_those_made_here() -> None:
    rows = TrainingRows(Path(DEMO), seed=3)
    with RowsAhead(rows, first=7, processes=1) as ahead:
        for index in (2, *range(7, 7 + CHUNK + 3)):  # a run that goes on asks for earlier ones first
            found, wanted = ahead(index), rows(index)
            assert (found.prompt, found.answer) == (wanted.prompt, wanted.answer)
            assert found.images == wanted.images
            np.testing.assert_equal(found.patches_INP, wanted.patches_INP)
