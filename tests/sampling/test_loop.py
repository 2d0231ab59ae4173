"""The compiled loop against a plain one, and rows that share nothing but the program."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from golden import reading

import dgemma_jax
from dgemma_jax import compiled
from dgemma_jax.cache import Cache
from dgemma_jax.config import GenerationConfig
from dgemma_jax.inputs import check_seeds
from dgemma_jax.sampling import denoise
from dgemma_jax.sampling.draws import KeyedDraws, row_keys
from dgemma_jax.sampling.settings import Settings

SEEDS = jnp.asarray(check_seeds([11, 12], 2))
CANVAS = jnp.array([0, 0])


@pytest.fixture(scope="module")
def model() -> dgemma_jax.Model:
    return reading.model("causal_images", backend="all_experts")


@pytest.fixture(scope="module")
def cache(model: dgemma_jax.Model) -> Cache:
    return model.prefill(reading.case("causal_images", "sampling", "rows_stop_apart")["tokens"])


def easy(steps: int, confidence: float = 0.5) -> Settings:
    """Settings under which the rows stop early, and not together."""
    config = GenerationConfig(
        max_denoising_steps=steps, entropy_bound=40.0, t_min=0.02, t_max=0.4, confidence_threshold=confidence
    )
    return Settings.of(config, 2)


def plain_loop(model: dgemma_jax.Model, cache: Cache, settings: Settings) -> tuple[denoise.State, list[np.ndarray]]:
    """The loop as one would write it in Python; also the canvas after each step."""
    config = model.config
    draws = KeyedDraws(row_keys(SEEDS, CANVAS), config.canvas_length, config.text.vocab_size)
    state = denoise.start(nnx.merge(model.graphdef, model.params), draws, settings)
    canvases = [np.asarray(state.canvas_BL)]
    while not np.asarray(state.done_B).all():
        state = compiled.denoise_step(model.graphdef, model.params, cache, state, settings, draws)
        canvases.append(np.asarray(state.canvas_BL))
    return state, canvases


def compiled_loop(model: dgemma_jax.Model, cache: Cache, settings: Settings) -> denoise.State:
    """The loop that `denoise_canvas` runs, with all of its last state."""

    @jax.jit
    def run(params: nnx.State, cache: Cache, settings: Settings) -> denoise.State:
        draws = KeyedDraws(row_keys(SEEDS, CANVAS), model.config.canvas_length, model.config.text.vocab_size)
        return denoise.denoise(nnx.merge(model.graphdef, params), cache, settings, draws)

    return run(model.params, cache, settings)


def test_the_compiled_loop_equals_the_plain_one_bit_for_bit(model: dgemma_jax.Model, cache: Cache) -> None:
    plain, _ = plain_loop(model, cache, easy(12))
    looped = compiled_loop(model, cache, easy(12))
    for field in dataclasses.fields(denoise.State):
        a, b = np.asarray(getattr(plain, field.name)), np.asarray(getattr(looped, field.name))
        np.testing.assert_array_equal(a.view(np.uint8), b.view(np.uint8), field.name)
    assert 1 < int(looped.step_B.min()) < 12, "the case is meant to stop early"


def test_denoise_canvas_gives_the_argmax_canvas_and_the_steps(model: dgemma_jax.Model, cache: Cache) -> None:
    plain, _ = plain_loop(model, cache, easy(12))
    canvas, steps = compiled.denoise_canvas(model.graphdef, model.params, cache, easy(12), SEEDS, CANVAS)
    np.testing.assert_array_equal(canvas, plain.argmax_BL)
    np.testing.assert_array_equal(steps, plain.step_B)


def test_a_row_stands_still_once_it_has_stopped(model: dgemma_jax.Model, cache: Cache) -> None:
    """The first row may take one step, the second five."""
    unsure = dataclasses.replace(easy(5, confidence=1e-9), entropy_bound_B=jnp.full(2, 0.01))
    settings = dataclasses.replace(unsure, max_steps_B=jnp.array([1, 5]))
    state, canvases = plain_loop(model, cache, settings)
    assert state.step_B.tolist() == [1, 5]
    assert all((canvas[0] == canvases[1][0]).all() for canvas in canvases[1:])
    assert any((canvas[1] != canvases[1][1]).any() for canvas in canvases[2:])


def test_a_row_with_no_steps_takes_none(model: dgemma_jax.Model, cache: Cache) -> None:
    settings = dataclasses.replace(easy(3, confidence=1e-9), max_steps_B=jnp.array([0, 3]))
    _, steps = compiled.denoise_canvas(model.graphdef, model.params, cache, settings, SEEDS, CANVAS)
    assert steps.tolist() == [0, 3]


def test_what_a_row_becomes_does_not_depend_on_its_neighbours_settings(model: dgemma_jax.Model, cache: Cache) -> None:
    both = easy(4, confidence=1e-9)
    other = dataclasses.replace(both, entropy_bound_B=jnp.array([40.0, 0.01]), t_max_B=jnp.array([0.4, 2.0]))
    run = (model.graphdef, model.params, cache)
    one, _ = compiled.denoise_canvas(*run, both, SEEDS, CANVAS)
    two, _ = compiled.denoise_canvas(*run, other, SEEDS.at[1, 0].set(99), CANVAS)
    np.testing.assert_array_equal(one[0], two[0])
    assert (np.asarray(one[1]) != np.asarray(two[1])).any()
