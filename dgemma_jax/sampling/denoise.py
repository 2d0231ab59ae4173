"""Denoising a canvas: one step, and the loop over steps that stays on the device.

Rows of a batch share nothing but the program: each has its own step count, settings and draws, and stands still
once it has stopped.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from dgemma_jax.cache import Cache
from dgemma_jax.model.diffusion_gemma import DiffusionGemma
from dgemma_jax.sampling import stopping
from dgemma_jax.sampling.accept import accept
from dgemma_jax.sampling.draws import Draws
from dgemma_jax.sampling.head import Prediction
from dgemma_jax.sampling.heads import head_of
from dgemma_jax.sampling.pins import certain, hold
from dgemma_jax.sampling.schedule import temperature
from dgemma_jax.sampling.settings import Settings


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """A canvas being denoised, per row: what the decoder reads next, the latest prediction, and the step count.

    `x_BLD` are the hidden states the latest prediction was made of; None unless the settings ask for log-probabilities.
    """

    canvas_BL: jax.Array
    argmax_BL: jax.Array
    soft_BLD: jax.Array
    x_BLD: jax.Array | None
    history_BUL: jax.Array
    step_B: jax.Array
    done_B: jax.Array


def start(model: DiffusionGemma, draws: Draws, settings: Settings) -> State:
    """A random canvas, nothing predicted yet."""
    canvas_BL = draws.canvas() if settings.pin_BL is None else hold(draws.canvas(), settings.pin_BL)
    rows, length = canvas_BL.shape
    embedding_VD = model.text.embedding_VD
    zeros_BLD = jnp.zeros((rows, length, embedding_VD.shape[1]), embedding_VD.dtype)
    return State(
        canvas_BL=canvas_BL,
        argmax_BL=canvas_BL,
        # Zeros are the reference's "no prediction yet": the loop needs one shape for all its steps, and the
        # self-conditioning block maps zeros to zero exactly.
        soft_BLD=zeros_BLD,
        x_BLD=zeros_BLD if settings.logprobs else None,
        history_BUL=stopping.start_history(rows, settings.stability_threshold, length),
        step_B=jnp.zeros(rows, jnp.int32),
        done_B=settings.max_steps_B <= 0,
    )


def step(model: DiffusionGemma, cache: Cache, state: State, settings: Settings, draws: Draws) -> State:
    """One denoising step of every row that is not done."""
    drawn = draws.step(state.step_B)
    x_BLD = model.denoise(cache, state.canvas_BL, state.soft_BLD)
    heat_B = temperature(state.step_B, settings)
    # What the last step would condition the next one on is not made. (That a canvas stops early shows too late.)
    goes_on_B = ~state.done_B & (state.step_B + 1 < settings.max_steps_B)
    head = head_of(model.text)
    prediction = head(model.text, x_BLD, heat_B, drawn.uniform_BL, settings.truncation, goes_on_B)
    if settings.pin_BL is not None:
        prediction = certain(model.text, prediction, settings.pin_BL)
    new = _advance(state, x_BLD, prediction, drawn.token_BL, settings)
    return jax.tree.map(lambda old, fresh: jnp.where(_like(state.done_B, fresh), old, fresh), state, new)


def _advance(state: State, x_BLD: jax.Array, prediction: Prediction, random_BL: jax.Array, settings: Settings) -> State:
    accepted_BL = accept(prediction.entropy_BL, settings.entropy_bound_B)
    stop_B = stopping.should_stop(
        prediction.argmax_BL, prediction.entropy_BL, state.history_BUL, settings.confidence_threshold_B
    )
    step_B = state.step_B + 1
    return State(
        # Nothing is frozen: a position accepted now is predicted, and may be rejected, again in the next step.
        canvas_BL=jnp.where(accepted_BL, prediction.drawn_BL, random_BL),
        argmax_BL=prediction.argmax_BL,
        soft_BLD=prediction.soft_BLD,
        x_BLD=x_BLD if settings.logprobs else None,
        history_BUL=stopping.remember(prediction.argmax_BL, state.history_BUL),
        step_B=step_B,
        done_B=stop_B | (step_B >= settings.max_steps_B),
    )


def _like(flag_B: jax.Array, x: jax.Array) -> jax.Array:
    return flag_B.reshape(-1, *(1,) * (x.ndim - 1))


def denoise(model: DiffusionGemma, cache: Cache, settings: Settings, draws: Draws) -> State:
    """Denoises one canvas of every row to its end. `argmax_BL` is what gets committed."""
    return jax.lax.while_loop(
        lambda state: ~jnp.all(state.done_B),
        lambda state: step(model, cache, state, settings, draws),
        start(model, draws, settings),
    )
