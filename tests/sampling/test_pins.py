"""Settled tokens: they stay from the first step to the last, cost no doubt, and free positions are none the wiser."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import reading

import dgemma_jax
from dgemma_jax import compiled
from dgemma_jax.sampling import denoise
from dgemma_jax.sampling.draws import KeyedDraws, row_keys
from dgemma_jax.sampling.pins import FREE, certain
from dgemma_jax.sampling.settings import Settings


@pytest.fixture(scope="module")
def model() -> dgemma_jax.Model:
    return dgemma_jax.load(reading.FOLDER / "window6", dtype="float32")


def states(model: dgemma_jax.Model, pin_BL: jax.Array | None, steps: int) -> list[denoise.State]:
    """The start and every step of two rows."""
    cache = model.prefill(np.arange(5, 15)[None].repeat(2, 0))
    keys = row_keys(jnp.asarray([[1, 0], [2, 0]], jnp.uint32), jnp.zeros(2, jnp.int32))
    draws = KeyedDraws(keys, model.config.canvas_length, model.config.text.vocab_size)
    settings = Settings.of(dataclasses.replace(model.generation, confidence_threshold=1e-9), 2)
    settings = dataclasses.replace(settings, pin_BL=pin_BL)
    found = [denoise.start(model.flat[0].model(model.flat[1]), draws, settings)]
    for _ in range(steps):
        found.append(compiled.denoise_step(*model.flat, cache, found[-1], settings, draws))
    return found


def test_settled_tokens_stay_and_are_predicted(model: dgemma_jax.Model) -> None:
    pins = np.full((2, model.config.canvas_length), FREE)
    pins[0, :2], pins[1, 1] = (7, 9), 11
    start, *steps = states(model, jnp.asarray(pins), 4)
    held = pins != FREE
    for state in (start, *steps):
        np.testing.assert_array_equal(np.asarray(state.canvas_BL)[held], pins[held])
    for state in steps:
        np.testing.assert_array_equal(np.asarray(state.argmax_BL)[held], pins[held])


def test_positions_that_are_free_are_denoised_as_ever(model: dgemma_jax.Model) -> None:
    free = jnp.full((2, model.config.canvas_length), FREE)
    for plain, pinned in zip(states(model, None, 3), states(model, free, 3), strict=True):
        jax.tree.map(np.testing.assert_array_equal, plain, pinned)


def test_one_row_is_held_and_the_other_does_not_notice(model: dgemma_jax.Model) -> None:
    pins = jnp.full((2, model.config.canvas_length), FREE).at[0, 0].set(7)
    plain, pinned = states(model, None, 3)[-1], states(model, pins, 3)[-1]
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[1], b[1]), plain, pinned)
    assert (np.asarray(plain.argmax_BL[0]) != np.asarray(pinned.argmax_BL[0])).any()


def test_a_settled_token_has_no_entropy_and_conditions_as_if_it_were_certain(model: dgemma_jax.Model) -> None:
    text = model.flat[0].model(model.flat[1]).text
    x_BLD = jax.random.normal(jax.random.key(0), (1, 3, model.config.text.hidden_size))
    head = denoise.head_of(text)
    prediction = head(text, x_BLD, jnp.ones(1), jnp.full((1, 3), 0.5), None, jnp.ones(1, bool))
    sure = certain(text, prediction, jnp.asarray([[FREE, 7, FREE]]))
    assert (sure.argmax_BL[0, 1], sure.drawn_BL[0, 1], sure.entropy_BL[0, 1]) == (7, 7, 0)
    one_hot_BLV = jax.nn.one_hot(jnp.asarray([[7]]), model.config.text.vocab_size)
    np.testing.assert_allclose(sure.soft_BLD[:, 1], text.soft_embed(one_hot_BLV)[:, 0], rtol=1e-6)
    for one, other in zip(sure, prediction, strict=True):
        np.testing.assert_array_equal(one[:, ::2], other[:, ::2])
