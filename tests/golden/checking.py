"""A model against what the reference computed: the comparisons that committed and live results share."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from golden import reading
from golden.reading import Arrays, RecordedDraws
from tolerances import KEY_VALUES, LOGITS, SOFT_TOKENS

import dgemma_jax
from dgemma_jax import compiled
from dgemma_jax.cache import Cache
from dgemma_jax.sampling.settings import Settings


def near(found: object, wanted: np.ndarray, tolerance: float) -> None:
    """Everywhere within an absolute tolerance."""
    np.testing.assert_allclose(np.asarray(found), wanted, rtol=0, atol=tolerance)


def check_key_values(model: dgemma_jax.Model, cache: Cache, golden: Arrays, when: str) -> None:
    """All keys and values of all layers."""
    for key, value in reading.key_values(cache, model.config.text.sliding_window).items():
        near(value, golden[f"{when}/{key}"], KEY_VALUES)


def check_logits(model: dgemma_jax.Model, golden: Arrays) -> None:
    """First step, second step, after a commit; and the cache before and after it."""
    cache = model.prefill(golden["tokens"], **reading.images(golden))
    check_key_values(model, cache, golden, "prefilled")
    near(model.denoise_logits(cache, golden["canvas"]), golden["first"], LOGITS)
    conditioned = model.denoise_logits(cache, golden["next_canvas"], golden["first"])
    near(conditioned, golden["conditioned"], LOGITS)
    committed = model.commit(cache, golden["canvas"])
    check_key_values(model, committed, golden, "committed")
    near(model.denoise_logits(committed, golden["next_canvas"]), golden["committed"], LOGITS)


def check_soft_tokens(model: dgemma_jax.Model, golden: Arrays) -> None:
    """The vision tower's output: the soft tokens of all images in order."""
    patches, positions = jnp.asarray(golden["patches"]), jnp.asarray(golden["patch_positions"], jnp.int32)
    soft = compiled.soft_tokens(*model.flat, patches, positions)
    near(soft[: len(golden["soft_tokens"])], golden["soft_tokens"], SOFT_TOKENS)


def check_steps(model: dgemma_jax.Model, golden: Arrays) -> None:
    """Every canvas after every step, and when each row stops: equal, not near."""
    config = reading.generation(golden)
    settings = Settings.of(config, len(golden["tokens"]))
    cache = model.prefill(golden["tokens"], **reading.images(golden))
    running = np.ones(len(golden["tokens"]), bool)  # a row that has ended means nothing afterwards
    for index in range(reading.count_canvases(golden)):
        draws = RecordedDraws.of(golden, index)
        state = reading.first_state(model, settings, draws)
        for step in range(len(golden[f"{index}/canvas"])):
            assert not np.asarray(state.done_B)[running].all(), "stopped before the reference"
            state = compiled.denoise_step(*model.flat, cache, state, settings, draws)
            for found, name in ((state.canvas_BL, "canvas"), (state.argmax_BL, "argmax")):
                wanted = golden[f"{index}/{name}"][step][running]
                np.testing.assert_array_equal(np.asarray(found)[running], wanted, f"{name}, step {step}")
        assert np.asarray(state.done_B)[running].all(), "the reference stopped here"
        np.testing.assert_array_equal(np.asarray(state.step_B)[running], golden[f"{index}/steps"][running])
        running &= ~np.isin(state.argmax_BL, config.eos_token_ids).any(axis=1)
        cache = model.commit(cache, np.asarray(state.argmax_BL))
