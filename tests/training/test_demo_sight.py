"""The vision tower's first lessons: what they say of a picture, and what is learned from them."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from dgemma_jax.prompt.tokenizer import Tokenizer
from dgemma_jax.training.demo import sight
from dgemma_jax.training.demo.architecture import DEMO_PROCESSOR, demo_config
from dgemma_jax.training.demo.run import DemoSettings, demo_model
from dgemma_jax.training.demo.scenes import COLOURS, KINDS, Background, Paint, Scene, Shape
from tools.paths import DEMO

WHITE, RED, BLUE = Paint("white", (245, 245, 245)), Paint("red", (220, 30, 30)), Paint("blue", (30, 70, 220))


def test_a_lesson_names_each_shape_in_the_cell_of_its_middle() -> None:
    shapes = (Shape("star", RED, 24, 8, 14), Shape("square", BLUE, 56, 40, 14))
    lesson = sight.page(Scene((64, 64), Background(WHITE), shapes))
    # Sixteen cells of 16 pixels, row by row.
    wanted = np.full(16, len(COLOURS))
    wanted[[1, 11]] = COLOURS.index("red"), COLOURS.index("blue")
    np.testing.assert_array_equal(lesson.colour_IM, wanted)
    wanted = np.full(16, len(KINDS))
    wanted[[1, 11]] = KINDS.index("star"), KINDS.index("square")
    np.testing.assert_array_equal(lesson.kind_IM, wanted)
    np.testing.assert_array_equal(lesson.background_IM, COLOURS.index("white"))


def test_cells_beyond_a_small_picture_teach_nothing() -> None:
    lesson = sight.page(Scene((96, 72), Background(WHITE), (Shape("circle", RED, 90, 60, 10),)))
    cells = int(np.sum(lesson.position_IN2[:, 0] >= 0)) // DEMO_PROCESSOR.pooling_kernel_size**2
    assert cells < DEMO_PROCESSOR.max_soft_tokens
    for labels in lesson[2:]:
        assert (labels[:cells] >= 0).all() and (labels[cells:] == -1).all()
    assert lesson.kind_IM[cells - 1] == KINDS.index("circle")


def test_a_seed_and_a_number_fix_a_lesson(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sight, "BATCH", 3)
    one, again, other = (sight.draw_lesson(5, number) for number in (2, 2, 3))
    jax.tree.map(np.testing.assert_array_equal, one, again)
    assert not np.array_equal(one.patches_INP, other.patches_INP)


def test_the_tower_alone_learns_and_the_same_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sight, "BATCH", 8)
    tokenizer = Tokenizer.from_folder(Path(DEMO))
    before, one, two = (demo_model(demo_config(tokenizer), DemoSettings(steps=1)) for _ in range(3))
    for model in (one, two):
        sight.learn_to_see(model, tokenizer, steps=2, seed=3)
    states = [nnx.to_pure_dict(nnx.state(model)) for model in (before, one, two)]
    jax.tree.map(np.testing.assert_array_equal, states[1], states[2])
    jax.tree.map(np.testing.assert_array_equal, states[0]["text"], states[1]["text"])
    assert not np.array_equal(states[0]["vision"]["patch_WP"], states[1]["vision"]["patch_WP"])


def test_a_tower_that_names_everything_has_nothing_left_to_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sight, "BATCH", 4)
    lesson = sight.draw_lesson(0, 0)

    def sure(labels: np.ndarray, classes: int) -> np.ndarray:
        return 50 * np.eye(classes, dtype=np.float32)[labels]

    sizes = (len(COLOURS) + 1, len(KINDS) + 1, len(COLOURS) + 1)
    right = tuple(sure(labels, size) for labels, size in zip(lesson[2:], sizes, strict=True))
    assert float(sight.lesson_loss(right, lesson)) == pytest.approx(0, abs=1e-6)
    for index, weight in enumerate((1, 1, sight.BACKGROUND_WEIGHT)):
        blind = [score * (place != index) for place, score in enumerate(right)]
        found = float(sight.lesson_loss(tuple(blind), lesson))
        assert found == pytest.approx(weight * np.log(sizes[index]), rel=1e-4)
