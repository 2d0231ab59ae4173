"""Rotary positions."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import ROUNDING

from dgemma_jax.config import DIFFUSION_GEMMA_26B_A4B, FULL, SLIDING, LayerType
from dgemma_jax.model.rope import patch_rotation, rotate, rotate_patches, rotation, text_frequencies

TEXT = DIFFUSION_GEMMA_26B_A4B.text
F32 = jnp.dtype("float32")


def head(seed: int, size: int) -> jnp.ndarray:
    return jnp.asarray(np.random.default_rng(seed).normal(size=(1, 1, 1, size)) * size**-0.5, jnp.float32)


def turned(x: jnp.ndarray, position: int, kind: LayerType) -> jnp.ndarray:
    return rotate(x, rotation(jnp.array([[position]]), text_frequencies(TEXT, kind), F32))


def test_the_published_frequencies() -> None:
    sliding, full = text_frequencies(TEXT, SLIDING), text_frequencies(TEXT, FULL)
    np.testing.assert_allclose(sliding, 1e4 ** (-2 * np.arange(128) / 256), rtol=1e-6)
    # A quarter of the pairs turn; the exponent's denominator is the whole head size.
    np.testing.assert_allclose(full[:64], 1e6 ** (-2 * np.arange(64) / 512), rtol=1e-6)
    assert full.shape == (256,) and (full[64:] == 0).all()


@pytest.mark.parametrize("kind", [SLIDING, FULL])
def test_scores_depend_on_the_distance_alone(kind: LayerType) -> None:
    size = TEXT.head_size(kind)
    q, k = head(0, size), head(1, size)
    scores = [float(jnp.sum(turned(q, 7 + shift, kind) * turned(k, shift, kind))) for shift in (0, 1, 50, 300)]
    np.testing.assert_allclose(scores, scores[0], atol=ROUNDING)
    assert abs(scores[0] - float(jnp.sum(turned(q, 90, kind) * turned(k, 0, kind)))) > 1e-3


@pytest.mark.parametrize("kind", [SLIDING, FULL])
def test_position_zero_turns_nothing_and_no_position_changes_the_length(kind: LayerType) -> None:
    x = head(2, TEXT.head_size(kind))
    np.testing.assert_array_equal(turned(x, 0, kind), x)
    np.testing.assert_allclose(jnp.linalg.norm(turned(x, 1000, kind)), jnp.linalg.norm(x), rtol=ROUNDING)


def test_full_layers_leave_three_quarters_of_a_head_alone() -> None:
    x = head(3, 512)
    y = turned(x, 12345, FULL)
    still = np.r_[64:256, 320:512]
    np.testing.assert_array_equal(np.asarray(y)[..., still], np.asarray(x)[..., still])
    assert (np.asarray(y)[..., :8] != np.asarray(x)[..., :8]).all()


def test_bfloat16_still_tells_neighbouring_positions_apart() -> None:
    turns = rotation(jnp.array([256, 257]), text_frequencies(TEXT, SLIDING), jnp.dtype("bfloat16"))
    assert (turns.cos[0] != turns.cos[1]).any()


def test_the_column_turns_the_first_half_of_a_patch_and_the_row_the_second() -> None:
    x = jnp.tile(head(4, 72), (1, 2, 1, 1))
    by = patch_rotation(jnp.array([[[5, 0], [0, 5]]]), 72, 100.0, F32)
    y = np.asarray(rotate_patches(x, by))[0, :, 0]
    plain = np.asarray(x)[0, 0, 0]
    assert (y[0, :36] != plain[:36]).any() and (y[1, 36:] != plain[36:]).any()
    np.testing.assert_array_equal(y[0, 36:], plain[36:])
    np.testing.assert_array_equal(y[1, :36], plain[:36])
