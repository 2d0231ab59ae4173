"""The compiled loop against a plain one, and rows that share nothing but the program."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from golden import reading
from tolerances import LOGITS, REORDERED

import dgemma_jax
from dgemma_jax import compiled
from dgemma_jax.cache import Cache
from dgemma_jax.config import GenerationConfig
from dgemma_jax.inputs import check_seeds
from dgemma_jax.sampling import denoise
from dgemma_jax.sampling.draws import KeyedDraws, row_keys
from dgemma_jax.sampling.options import MOST_LOGPROBS, PLAIN, SamplingOptions
from dgemma_jax.sampling.schedule import temperature
from dgemma_jax.sampling.settings import Settings
from dgemma_jax.sampling.truncation import Truncation

SEEDS = jnp.asarray(check_seeds([11, 12], 2))
CANVAS = jnp.array([0, 0])
ALL_OPTIONS = SamplingOptions(top_k=30, top_p=0.8, logprobs=5)


@pytest.fixture(scope="module")
def model() -> dgemma_jax.Model:
    return reading.model("causal_images", backend="all_experts")


@pytest.fixture(scope="module")
def cache(model: dgemma_jax.Model) -> Cache:
    return model.prefill(reading.case("causal_images", "sampling", "rows_stop_apart")["tokens"])


def easy(steps: int, confidence: float = 0.5, options: SamplingOptions = PLAIN) -> Settings:
    """Settings under which the rows stop early, and not together."""
    config = GenerationConfig(
        max_denoising_steps=steps, entropy_bound=40.0, t_min=0.02, t_max=0.4, confidence_threshold=confidence
    )
    return Settings.of(config, 2, options)


def plain_loop(model: dgemma_jax.Model, cache: Cache, settings: Settings) -> tuple[denoise.State, list[np.ndarray]]:
    """The loop as one would write it in Python; also the canvas after each step."""
    config = model.config
    draws = KeyedDraws(row_keys(SEEDS, CANVAS), config.canvas_length, config.text.vocab_size)
    state = denoise.start(nnx.merge(model.graphdef, model.params), draws, settings)
    canvases = [np.asarray(state.canvas_BL)]
    while not np.asarray(state.done_B).all():
        state = compiled.denoise_step(*model.flat, cache, state, settings, draws)
        canvases.append(np.asarray(state.canvas_BL))
    return state, canvases


def compiled_loop(model: dgemma_jax.Model, cache: Cache, settings: Settings) -> denoise.State:
    """The loop that `denoise_canvas` runs, with all of its last state."""

    @jax.jit
    def run(params: nnx.State, cache: Cache, settings: Settings) -> denoise.State:
        draws = KeyedDraws(row_keys(SEEDS, CANVAS), model.config.canvas_length, model.config.text.vocab_size)
        return denoise.denoise(nnx.merge(model.graphdef, params), cache, settings, draws)

    return run(model.params, cache, settings)


@pytest.mark.parametrize("options", [PLAIN, ALL_OPTIONS])
def test_the_compiled_loop_equals_the_plain_one_bit_for_bit(
    model: dgemma_jax.Model, cache: Cache, options: SamplingOptions
) -> None:
    plain, _ = plain_loop(model, cache, easy(12, options=options))
    looped = compiled_loop(model, cache, easy(12, options=options))
    assert jax.tree.structure(plain) == jax.tree.structure(looped)
    for (path, a), b in zip(jax.tree.leaves_with_path(plain), jax.tree.leaves(looped), strict=True):
        np.testing.assert_array_equal(np.asarray(a).view(np.uint8), np.asarray(b).view(np.uint8), str(path))
    assert 1 < int(looped.step_B.min()) < 12, "the case is meant to stop early"


def test_denoise_canvas_gives_the_argmax_canvas_and_the_steps(model: dgemma_jax.Model, cache: Cache) -> None:
    plain, _ = plain_loop(model, cache, easy(12))
    made = compiled.denoise_canvas(*model.flat, cache, easy(12), SEEDS, CANVAS)
    np.testing.assert_array_equal(made.canvas_BL, plain.argmax_BL)
    np.testing.assert_array_equal(made.step_B, plain.step_B)
    assert made.logprobs is None


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
    made = compiled.denoise_canvas(*model.flat, cache, settings, SEEDS, CANVAS)
    assert made.step_B.tolist() == [0, 3]


def test_what_a_row_becomes_does_not_depend_on_its_neighbours_settings(model: dgemma_jax.Model, cache: Cache) -> None:
    both = easy(4, confidence=1e-9)
    other = dataclasses.replace(both, entropy_bound_B=jnp.array([40.0, 0.01]), t_max_B=jnp.array([0.4, 2.0]))
    run = (*model.flat, cache)
    one = compiled.denoise_canvas(*run, both, SEEDS, CANVAS).canvas_BL
    two = compiled.denoise_canvas(*run, other, SEEDS.at[1, 0].set(99), CANVAS).canvas_BL
    np.testing.assert_array_equal(one[0], two[0])
    assert (np.asarray(one[1]) != np.asarray(two[1])).any()


def test_a_row_without_bounds_is_as_it_was_beside_one_with_bounds(model: dgemma_jax.Model, cache: Cache) -> None:
    """Every canvas on the way there too, though the program is another."""
    lively = dataclasses.replace(easy(6, confidence=1e-9), t_min_B=jnp.full(2, 3.0), t_max_B=jnp.full(2, 4.0))
    bounded = dataclasses.replace(lively, truncation=Truncation.of([PLAIN, SamplingOptions(top_k=2, top_p=0.5)]))
    _, alone = plain_loop(model, cache, lively)
    _, beside = plain_loop(model, cache, bounded)
    np.testing.assert_array_equal([canvas[0] for canvas in alone], [canvas[0] for canvas in beside])
    assert any((a[1] != b[1]).any() for a, b in zip(alone, beside, strict=True))


def test_asking_for_logprobs_changes_nothing_else(model: dgemma_jax.Model, cache: Cache) -> None:
    told, told_canvases = plain_loop(model, cache, easy(12, options=SamplingOptions(logprobs=0)))
    plain, canvases = plain_loop(model, cache, easy(12))
    np.testing.assert_array_equal(told_canvases, canvases)
    np.testing.assert_array_equal(told.step_B, plain.step_B)


def test_logprobs_are_of_the_last_step_each_canvas_took_at_temperature_1(model: dgemma_jax.Model, cache: Cache) -> None:
    """Against `denoise_logits`, fed step by step as its documentation says; the rows stop apart."""
    settings = dataclasses.replace(easy(12, options=SamplingOptions(logprobs=0)), max_steps_B=jnp.array([3, 12]))
    state, canvases = plain_loop(model, cache, settings)
    steps, last, previous = np.asarray(state.step_B), np.zeros((2, 8, model.config.text.vocab_size)), None
    for step, canvas in enumerate(canvases[:-1]):
        logits = model.denoise_logits(cache, canvas, previous)
        last[steps == step + 1] = jax.nn.log_softmax(logits)[steps == step + 1]
        previous = logits / temperature(jnp.full(2, step), settings)[:, None, None]
    assert 1 < steps[0] < steps[1]
    made = compiled.denoise_canvas(*model.flat, cache, settings, SEEDS, CANVAS)
    found = made.logprobs
    wanted = -np.sort(-last)[..., :MOST_LOGPROBS]
    # Two programs, and the roundings of each step reach the next one through self-conditioning.
    np.testing.assert_allclose(found.logprob_BLQ, wanted, rtol=0, atol=LOGITS)
    np.testing.assert_array_equal(found.likeliest_BLQ[..., 0], made.canvas_BL)
    np.testing.assert_array_equal(found.token_BL, found.logprob_BLQ[..., 0])
    np.testing.assert_allclose(np.take_along_axis(last, np.asarray(found.likeliest_BLQ), -1), wanted, atol=REORDERED)
