"""Where a demo run begins, and what it reads."""

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
from dgemma_jax.training.run_folder import copy_companions
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
