"""The streaming vocabulary pass against the materialised one."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from golden import checking, reading
from tolerances import BFLOAT16_RATIO, ROUNDING

import dgemma_jax
from dgemma_jax import sharding
from dgemma_jax.config import GenerationConfig, TextConfig
from dgemma_jax.model.text import TextModel
from dgemma_jax.sampling import streaming
from dgemma_jax.sampling.head import Prediction, predict, predict_drawn
from dgemma_jax.sampling.heads import choose_head, head_of
from dgemma_jax.sampling.options import PLAIN, SamplingOptions
from dgemma_jax.sampling.settings import Settings
from dgemma_jax.sampling.truncation import Truncation

L, D = 48, 16
EDGE = 1e-5
"""How far a uniform number must be from the edge between two tokens for both passes to draw the same."""


def text_model(vocabulary: int, dtype: str = "float32") -> TextModel:
    config: TextConfig = reading.model("text_only").config.text
    config = dataclasses.replace(config, vocab_size=vocabulary, hidden_size=D, final_logit_softcapping=30.0)
    return TextModel(config, nnx.Rngs(vocabulary), jnp.dtype(dtype), "all_experts", "streaming")


def states(rows: int, spread: float, dtype: str = "float32") -> jax.Array:
    """Hidden states, and with them logits, up to `spread` times as large as the norm would leave them."""
    x = np.random.default_rng(5).standard_normal((rows, L, D))
    return jnp.asarray(x, dtype) * jnp.asarray(spread, dtype)


def scaled(text: TextModel, spread: float) -> TextModel:
    """The final norm's scale decides how sharp predictions are."""
    text.norm.scale[...] = jnp.full(D, spread, text.norm.scale[...].dtype)
    return text


def both(
    text: TextModel, x_BLD: jax.Array, heat_B: jax.Array, uniform_BL: jax.Array, bounds: Truncation | None = None
) -> tuple[Prediction, Prediction]:
    graphdef, state = nnx.split(text)

    @jax.jit
    def run(state: nnx.State) -> tuple[Prediction, Prediction]:
        text = nnx.merge(graphdef, state)
        arguments = (text, x_BLD, heat_B, uniform_BL, bounds)
        return predict(*arguments), streaming.predict_streaming(*arguments)

    return run(state)


def clear_of_edges(text: TextModel, x_BLD: jax.Array, heat_B: jax.Array) -> jax.Array:
    """Uniform numbers that both passes must answer with the same token."""
    logits = np.asarray(text.logits(x_BLD) / heat_B[:, None, None], np.float64)
    cumulative = np.cumsum(np.exp(logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)), axis=-1)
    rng = np.random.default_rng(6)
    uniform = rng.random(x_BLD.shape[:2], np.float32)
    for _ in range(1000):
        near = np.abs(cumulative - uniform[..., None]).min(axis=-1) < EDGE
        if not near.any():
            return jnp.asarray(uniform)
        uniform[near] = rng.random(near.sum(), np.float32)
    raise AssertionError("the distributions leave no room between their edges")


# One tile and several; a last tile that reaches back; fewer tokens than a group; groups that the edge cuts.
@pytest.mark.parametrize(
    ("vocabulary", "spread"), [(7, 0.5), (32, 6.0), (100, 6.0), (1024, 0.5), (1025, 6.0), (1500, 0.5)]
)
def test_it_equals_the_materialised_pass(vocabulary: int, spread: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(streaming.TILES, "cpu", 256)
    text = scaled(text_model(vocabulary), spread)
    x_BLD, heat_B = states(2, 1.0), jnp.array([0.8, 0.4])
    plain, streamed = both(text, x_BLD, heat_B, clear_of_edges(text, x_BLD, heat_B))
    np.testing.assert_array_equal(streamed.argmax_BL, plain.argmax_BL)
    np.testing.assert_array_equal(streamed.drawn_BL, plain.drawn_BL)
    np.testing.assert_allclose(streamed.entropy_BL, plain.entropy_BL, rtol=0, atol=ROUNDING)
    np.testing.assert_allclose(streamed.soft_BLD, plain.soft_BLD, rtol=0, atol=ROUNDING)
    assert len(np.unique(plain.drawn_BL)) > 3, "the draws are meant to go everywhere"


def test_in_bfloat16_it_is_as_near_to_float32_as_the_materialised_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """The two round at different places, as the compiler decides for each: both are held to what neither rounds."""
    monkeypatch.setitem(streaming.TILES, "cpu", 256)
    text, x_BLD, heat_B = scaled(text_model(1500, "bfloat16"), 3.0), states(2, 1.0, "bfloat16"), jnp.array([0.8, 0.4])
    half = jnp.full((2, L), 0.5)
    found = both(text, x_BLD, heat_B, half)
    exact_text = scaled(text_model(1500), 3.0)
    exact_text.embedding_VD[...] = text.embedding_VD[...].astype(jnp.float32)
    exact, _ = both(exact_text, x_BLD.astype(jnp.float32), heat_B, half)
    for name in ("entropy_BL", "soft_BLD"):
        plain, streamed = (
            np.median(np.abs(np.asarray(getattr(one, name), np.float32) - np.asarray(getattr(exact, name))))
            for one in found
        )
        assert 0 < streamed < BFLOAT16_RATIO * plain, name
    assert (exact.argmax_BL == found[1].argmax_BL).mean() > 0.9


def test_impossible_tokens_are_never_drawn_and_all_possible_ones_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frozen to a few tokens, all others have probability zero; numbers at both ends and everywhere between."""
    monkeypatch.setitem(streaming.TILES, "cpu", 256)
    text = scaled(text_model(1500), 20.0)
    x_BLD, heat_B = jnp.broadcast_to(states(1, 1.0)[:, :1], (1, 4096, D)), jnp.array([0.05])
    numbers = np.linspace(0, 1 - 2**-24, 4096, dtype=np.float32)[None]
    plain, streamed = both(text, x_BLD, heat_B, jnp.asarray(numbers))
    probability = np.asarray(jax.nn.softmax(text.logits(x_BLD[:, :1]) / heat_B[:, None, None]))[0, 0]
    assert (probability == 0).sum() > 1000
    assert (probability[np.asarray(streamed.drawn_BL)] > 0).all()
    np.testing.assert_array_equal(np.unique(streamed.drawn_BL), np.unique(plain.drawn_BL))


def test_draws_come_as_often_as_their_probability_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evenly spaced numbers: each token's share is exact to one draw, across tiles and groups."""
    monkeypatch.setitem(streaming.TILES, "cpu", 64)
    text = scaled(text_model(150), 1.0)
    x_BLD, heat_B = jnp.broadcast_to(states(1, 1.0)[:, :1], (1, 8000, D)), jnp.array([0.8])
    numbers = jnp.asarray((np.arange(8000)[None] + 0.5) / 8000, jnp.float32)
    _, streamed = both(text, x_BLD, heat_B, numbers)
    probability = np.asarray(jax.nn.softmax(text.logits(x_BLD[:, :1]) / heat_B[:, None, None]))[0, 0]
    share = np.bincount(np.asarray(streamed.drawn_BL)[0], minlength=150) / 8000
    np.testing.assert_allclose(share, probability, atol=2 / 8000)


def test_of_equally_likely_tokens_the_first_is_the_argmax(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(streaming.TILES, "cpu", 64)
    text = text_model(150)
    text.embedding_VD[...] = jnp.zeros((150, D)).at[jnp.array([30, 70, 140])].set(1.0)
    x_BLD = jnp.abs(states(1, 1.0))
    _, streamed = both(text, x_BLD, jnp.array([0.8]), jnp.full((1, L), 0.5))
    np.testing.assert_array_equal(streamed.argmax_BL, 30)


def test_states_that_are_no_numbers_give_embeddings_that_are_none() -> None:
    """The engine notices them there. The tokens stay in the vocabulary."""
    text = text_model(1500)
    x_BLD = states(1, 1.0).at[0, 3, 0].set(jnp.nan)
    _, streamed = both(text, x_BLD, jnp.array([0.8]), jnp.full((1, L), 0.5))
    finite = np.isfinite(np.asarray(streamed.soft_BLD)[0]).all(axis=-1)
    np.testing.assert_array_equal(np.flatnonzero(~finite), [3])
    for tokens in (streamed.argmax_BL, streamed.drawn_BL):
        assert ((tokens >= 0) & (tokens < 1500)).all()


def test_rows_with_bounds_draw_within_them_and_leave_the_others_as_they_were() -> None:
    text = scaled(text_model(1500), 2.0)
    x_BLD, heat_B = states(2, 1.0), jnp.array([0.8, 0.8])
    uniform_BL = clear_of_edges(text, x_BLD, heat_B)
    bounds = Truncation.of([PLAIN, SamplingOptions(top_k=1)])
    _, alone = both(text, x_BLD, heat_B, uniform_BL)
    _, bounded = both(text, x_BLD, heat_B, uniform_BL, bounds)
    for name in ("argmax_BL", "entropy_BL", "soft_BLD"):
        np.testing.assert_array_equal(getattr(alone, name), getattr(bounded, name), name)
    np.testing.assert_array_equal(bounded.drawn_BL[0], alone.drawn_BL[0])
    np.testing.assert_array_equal(bounded.drawn_BL[1], bounded.argmax_BL[1])
    assert (np.asarray(alone.drawn_BL[1]) != np.asarray(alone.argmax_BL[1])).any()


MIXED = [PLAIN, SamplingOptions(top_k=3), PLAIN, SamplingOptions(top_k=9, top_p=0.7)]


@pytest.mark.parametrize(("options", "times"), [(MIXED, 2), ([PLAIN] * 4, 0), ([SamplingOptions(top_p=0.5)] * 4, 1)])
def test_only_rows_with_bounds_pay_for_them_and_draw_as_all_together_would(
    options: list[SamplingOptions], times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pass each, or one over all where most have bounds."""
    text = scaled(text_model(1500), 2.0)
    x_BLD, heat_B = states(4, 1.0), jnp.array([0.8, 0.6, 0.4, 0.5])
    uniform_BL = clear_of_edges(text, x_BLD, heat_B)
    bounds = Truncation(*(jnp.asarray([getattr(one, name) for one in options]) for name in ("top_k", "top_p")))
    passes: list[int] = []

    def watched(*arguments: Any) -> jax.Array:
        jax.debug.callback(lambda: passes.append(1))
        return predict_drawn(*arguments)

    monkeypatch.setattr(streaming, "predict_drawn", watched)
    _, streamed = both(text, x_BLD, heat_B, uniform_BL, bounds)
    jax.effects_barrier()
    assert len(passes) == times
    together = predict_drawn(text, x_BLD, heat_B, uniform_BL, bounds)
    _, plain = both(text, x_BLD, heat_B, uniform_BL)
    for row, option in enumerate(options):
        np.testing.assert_array_equal(streamed.drawn_BL[row], (together if option.truncates else plain.drawn_BL)[row])


@pytest.mark.parametrize("wanted", ["data=2", "data=2,expert=2,model=2"])
def test_rows_with_bounds_draw_alike_where_a_mesh_spreads_them(wanted: str) -> None:
    """One row of each device at a time; of the second and third pair neither row has bounds."""
    options = [*MIXED[1:3], PLAIN, PLAIN, PLAIN, PLAIN, PLAIN, MIXED[3]]
    x_BLD, heat_B, bounds = states(8, 1.0), jnp.full(8, 0.6), Truncation.of(options)
    alone, spread = scaled(text_model(1500), 2.0), scaled(text_model(1500), 2.0)
    uniform_BL = clear_of_edges(alone, x_BLD, heat_B)
    mesh = sharding.make_mesh(wanted, spread.config)
    graphdef, state = nnx.split(sharding.spread(spread, mesh))

    @jax.jit
    def run(state: nnx.State, x_BLD: jax.Array) -> jax.Array:
        text = nnx.merge(graphdef, state)
        return head_of(text)(text, x_BLD, heat_B, uniform_BL, bounds, None).drawn_BL

    found = run(sharding.place(state, mesh), sharding.by_row(x_BLD, mesh))
    _, streamed = both(alone, x_BLD, heat_B, uniform_BL, bounds)
    np.testing.assert_array_equal(found, streamed.drawn_BL)


STREAMED = [("window6", "rows_stop_apart"), ("text_only", "two_canvases"), ("causal_images", "five_steps")]


@pytest.mark.parametrize(("name", "case"), STREAMED)
def test_every_canvas_after_every_step_equals_the_reference(name: str, case: str) -> None:
    model = dgemma_jax.load(reading.FOLDER / name, dtype="float32", backend="all_experts", head="streaming")
    checking.check_steps(model, reading.case(name, "sampling", case))


def test_after_the_last_step_there_is_no_expected_embedding_but_all_else() -> None:
    """It still shows that states are no numbers."""
    text, x_BLD, heat_B, half = text_model(1500), states(1, 1.0), jnp.array([0.8]), jnp.full((1, L), 0.5)
    x_BLD = x_BLD.at[0, 3, 0].set(jnp.nan)
    graphdef, state = nnx.split(text)

    @jax.jit
    def run(goes_on_B: jax.Array) -> Prediction:
        return streaming.predict_streaming(nnx.merge(graphdef, state), x_BLD, heat_B, half, None, goes_on_B)

    last, other = run(jnp.array([False])), run(jnp.array([True]))
    for name in ("argmax_BL", "drawn_BL", "entropy_BL"):
        np.testing.assert_array_equal(getattr(last, name), getattr(other, name), name)
    numbers = np.isfinite(np.asarray(last.soft_BLD)).all(axis=-1)[0]
    np.testing.assert_array_equal(np.flatnonzero(~numbers), [3])
    assert (np.asarray(last.soft_BLD)[0, numbers] == 0).all() and (np.asarray(other.soft_BLD)[0, numbers] != 0).any()


def test_a_tile_adds_nothing_to_the_expected_embedding_where_no_row_can_draw_from_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its embeddings are infinite, so that a product with them shows, whatever it is multiplied with. Cold rows give it
    a probability of exp(-1200), which float32 does not hold; for one hot row, with exp(-6), the product is made."""
    monkeypatch.setitem(streaming.TILES, "cpu", 256)
    text, x_BLD, cold, hot = text_model(768), jnp.ones((2, L, D)), 0.05, 10.0
    text.embedding_VD[...] = jnp.zeros((768, D)).at[:, 0].set(-jnp.inf).at[:256, 0].set(-1e3).at[5, 0].set(1e3)
    half = jnp.full((2, L), 0.5)
    _, skipped = both(text, x_BLD, jnp.array([cold, cold]), half)
    np.testing.assert_array_equal(skipped.soft_BLD[..., 0], 1e3 * text.embedding_scale)
    np.testing.assert_array_equal(skipped.drawn_BL, 5)
    _, mixed = both(text, x_BLD, jnp.array([cold, hot]), half)
    assert not np.isfinite(mixed.soft_BLD[..., 0]).any()


def test_a_row_is_the_same_alone_and_in_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(streaming.TILES, "cpu", 32)
    model = dgemma_jax.load(reading.FOLDER / "text_only", dtype="float32", backend="all_experts", head="streaming")
    prompts, steps = np.arange(10).reshape(2, 5) + 20, 4
    both_rows = model.generate(prompts, 16, seed=[3, 4], max_denoising_steps=steps).tokens
    second = model.generate(prompts[1:], 16, seed=[4], max_denoising_steps=steps).tokens
    np.testing.assert_array_equal(both_rows[1, : second.shape[1]], second[0])
    assert (both_rows[0] != both_rows[1]).any()


def test_no_logits_of_the_whole_vocabulary_exist() -> None:
    text = text_model(65536)
    graphdef, state = nnx.split(text)
    settings = Settings.of(GenerationConfig(), 1)

    def run(state: nnx.State, x_BLD: jax.Array, uniform_BL: jax.Array) -> Prediction:
        return streaming.predict_streaming(
            nnx.merge(graphdef, state), x_BLD, settings.t_max_B, uniform_BL, settings.truncation
        )

    module = jax.jit(run).lower(state, states(1, 1.0), jnp.zeros((1, L))).compile()
    logits = 4 * L * 65536
    assert module.memory_analysis().temp_size_in_bytes < logits / 2
    assert "[48,65536]" not in module.as_text() and "[1,48,65536]" not in module.as_text()


def test_a_gpu_takes_the_vocabulary_whole_while_its_logits_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles are copied there; of many canvases the logits of all tokens would not fit beside the weights."""
    V = 262144
    assert streaming._tile_size(256, V) == streaming.TILES["cpu"]
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert [streaming._tile_size(256 * canvases, V) for canvases in (1, 4, 8, 64)] == [V, V, V // 2, 65536]
    assert streaming._tile_size(1, 1000) == 992


def test_all_but_tiny_vocabularies_are_streamed() -> None:
    small = reading.model("text_only").config.text
    assert choose_head(small) == "materialised"
    assert choose_head(dataclasses.replace(small, vocab_size=1024)) == "streaming"
    assert choose_head(dataclasses.replace(small, vocab_size=262144)) == "streaming"
