"""The sampler's rules one by one: temperature, drawing, acceptance, stopping, randomness."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dgemma_jax.config import GenerationConfig
from dgemma_jax.inputs import check_seeds
from dgemma_jax.sampling import stopping
from dgemma_jax.sampling.accept import accept
from dgemma_jax.sampling.draws import KeyedDraws, row_keys
from dgemma_jax.sampling.head import draw
from dgemma_jax.sampling.schedule import temperature
from dgemma_jax.sampling.settings import Settings

ALMOST_ONE = np.float32(1 - 2**-24)
draw_jit = jax.jit(draw)


def accepted(entropies: list[float], bound: float) -> list[bool]:
    return np.asarray(accept(jnp.asarray([entropies], jnp.float32), jnp.asarray([bound], jnp.float32)))[0].tolist()


def drawn(probabilities: np.ndarray, uniform: float) -> int:
    uniform_11 = jnp.full((1, 1), uniform, jnp.float32)
    return int(draw_jit(jnp.asarray(probabilities, jnp.float32)[None, None], uniform_11)[0, 0])


def test_the_temperature_falls_from_t_max_to_one_step_short_of_t_min() -> None:
    rows = Settings.of(GenerationConfig(max_denoising_steps=48, t_min=0.4, t_max=0.8), 3)
    found = temperature(jnp.array([0, 24, 47]), rows)
    np.testing.assert_allclose(found, [0.8, 0.6, 0.4 + 0.4 / 48], rtol=1e-6)


def test_rows_have_their_own_schedule() -> None:
    rows = dataclasses.replace(Settings.of(GenerationConfig(), 2), max_steps_B=jnp.array([4, 8]))
    np.testing.assert_allclose(temperature(jnp.array([2, 2]), rows), [0.6, 0.7], rtol=1e-6)


def test_everything_certain_is_accepted() -> None:
    assert accepted([0.0, 0.0, 0.0, 0.0], 0.1) == [True] * 4


def test_of_nothing_certain_exactly_the_surest_position_is_accepted() -> None:
    assert accepted([3.0, 2.5, 4.0, 2.6], 0.1) == [False, True, False, False]


def test_the_earlier_of_equally_sure_positions_is_accepted() -> None:
    assert accepted([3.0, 2.0, 2.0, 2.0], 0.1) == [False, True, False, False]
    assert accepted([2.0, 2.0, 2.0], 2.0) == [True, True, False]


def test_a_sum_that_equals_the_bound_is_within_it() -> None:
    assert accepted([0.25, 0.5, 0.25], 0.5) == [True, True, True]
    assert accepted([0.25, 0.5, 0.25], 0.4375) == [True, False, True]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=6, max_size=6), st.integers(0, 100))
def test_the_accepted_are_a_surest_set_within_the_bound(quarters: list[int], bound: int) -> None:
    """Quarters of a nat add up without rounding, so the definition can be written down literally."""
    chosen = accepted([value / 4 for value in quarters], bound / 4)
    order = sorted(range(6), key=lambda index: (quarters[index], index))
    wanted = [False] * 6
    for count, index in enumerate(order):
        wanted[index] = sum(quarters[one] for one in order[:count]) <= bound
    assert chosen == wanted


def test_rows_have_their_own_bound() -> None:
    entropy = jnp.full((2, 3), 1.0)
    np.testing.assert_array_equal(accept(entropy, jnp.array([0.5, 1.0])), [[1, 0, 0], [1, 1, 0]])


def test_a_draw_is_where_the_cumulative_probability_passes_the_number() -> None:
    probabilities = np.array([0.25, 0.0, 0.5, 0.25])
    found = [drawn(probabilities, uniform) for uniform in (0.0, 0.2499, 0.25, 0.5, 0.7499, 0.75, ALMOST_ONE)]
    assert found == [0, 0, 2, 2, 2, 3, 3]


def test_impossible_tokens_are_not_drawn_at_the_ends_either() -> None:
    probabilities = np.array([0.0, 0.0, 1.0, 0.0])
    assert [drawn(probabilities, uniform) for uniform in (0.0, 0.5, ALMOST_ONE)] == [2, 2, 2]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.02, 0.3, 1.0]))
def test_impossible_tokens_are_never_drawn(seed: int, possible: float) -> None:
    """Also where the number falls on a rounding of the sum: XLA's parallel sum is not quite monotonic."""
    rng = np.random.default_rng(seed)
    weights = rng.exponential(size=2000) ** 4 * (rng.random(2000) < possible)
    weights[rng.integers(2000)] += 1e-3
    probabilities = np.float32(weights / weights.sum())
    edges = np.asarray(jnp.cumsum(jnp.asarray(probabilities)))
    uniform = np.clip(np.concatenate([rng.choice(edges, 62), [0.0, ALMOST_ONE]]), 0, ALMOST_ONE)
    tokens = draw_jit(jnp.asarray(np.tile(probabilities, (1, 64, 1))), jnp.asarray(uniform[None], jnp.float32))
    assert (probabilities[np.asarray(tokens)] > 0).all()


def test_draws_come_as_often_as_their_probability_says() -> None:
    """Evenly spaced numbers: each token's share is exact to one draw."""
    probabilities = np.random.default_rng(1).dirichlet(np.ones(20))
    numbers = jnp.asarray((np.arange(4000)[None] + 0.5) / 4000, jnp.float32)
    tokens = draw_jit(jnp.asarray(np.tile(probabilities, (1, 4000, 1)), jnp.float32), numbers)
    share = np.bincount(np.asarray(tokens)[0], minlength=20) / 4000
    np.testing.assert_allclose(share, probabilities, atol=1 / 4000)


def stops(threshold: int, canvases: list[list[int]], entropy: float) -> list[bool]:
    """Whether to stop after each of these predictions, for one row."""
    history = stopping.start_history(1, threshold, len(canvases[0]))
    found = []
    for canvas in canvases:
        argmax = jnp.array([canvas])
        sure = jnp.full((1, len(canvas)), entropy)
        found.append(bool(stopping.should_stop(argmax, sure, history, jnp.array([0.1]))[0]))
        history = stopping.remember(argmax, history)
    return found


@pytest.mark.parametrize(
    ("threshold", "wanted"), [(0, [True] * 5), (1, [False, True, False, True, True]), (2, [False] * 4 + [True])]
)
def test_a_canvas_stops_when_as_many_predictions_before_it_were_the_same(threshold: int, wanted: list[bool]) -> None:
    assert stops(threshold, [[5, 6], [5, 6], [5, 7], [5, 7], [5, 7]], 0.05) == wanted


@pytest.mark.parametrize("threshold", [0, 1, 2])
def test_a_canvas_that_is_not_sure_does_not_stop(threshold: int) -> None:
    assert not any(stops(threshold, [[5, 6]] * 5, 0.2))
    assert not any(stops(threshold, [[5, 6]] * 5, np.float32(0.1))), "below the threshold, not at it"


def test_draws_depend_on_seed_canvas_and_step_alone() -> None:
    def draws(seeds: list[int], canvases: list[int]) -> KeyedDraws:
        return KeyedDraws(row_keys(jnp.asarray(check_seeds(seeds, len(seeds))), jnp.array(canvases)), 16, 1000)

    one, batch = draws([7], [1]), draws([3, 7, 7], [1, 1, 2])
    np.testing.assert_array_equal(one.canvas()[0], batch.canvas()[1])
    alone, together = one.step(jnp.array([4])), batch.step(jnp.array([0, 4, 4]))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[0], b[1]), alone, together)
    different = [*batch.canvas(), together.token_BL[1], one.step(jnp.array([5])).token_BL[0]]
    assert len({tuple(np.asarray(row).tolist()) for row in different}) == len(different)


def test_both_halves_of_a_seed_count() -> None:
    seeds = [0, 1, 2**32, 2**32 + 1, 2**64 - 1]
    keys = row_keys(jnp.asarray(check_seeds(seeds, 5)), jnp.zeros(5, jnp.int32))
    assert len({tuple(row) for row in np.asarray(KeyedDraws(keys, 16, 1000).canvas()).tolist()}) == 5
    np.testing.assert_array_equal(check_seeds(-1, 2), [[2**32 - 1, 2**32 - 1]] * 2)


@pytest.mark.parametrize(
    ("seed", "says"),
    [(2**64, "must fit 64 bits, found 18446744073709551616"), (0.5, "found 0.5"), ([1, 2, 3], "each of the 2 rows")],
)
def test_seeds_that_cannot_be_used(seed: object, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        check_seeds(seed, 2)


def test_random_tokens_are_spread_over_the_whole_vocabulary() -> None:
    draws = KeyedDraws(row_keys(jnp.asarray(check_seeds(range(64), 64)), jnp.zeros(64, jnp.int32)), 256, 10)
    counts = np.bincount(np.asarray(draws.canvas()).reshape(-1), minlength=10)
    assert len(counts) == 10
    np.testing.assert_allclose(counts / 1638.4, 1, atol=0.15)
    uniform = np.asarray(draws.step(jnp.zeros(64, jnp.int32)).uniform_BL)
    assert uniform.min() >= 0 and uniform.max() < 1
    np.testing.assert_allclose(uniform.mean(), 0.5, atol=0.02)
