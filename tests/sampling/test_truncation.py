"""Which tokens may be drawn, against the definitions of top-k and top-p, and what that costs."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from golden import reading
from hypothesis import given, settings
from hypothesis import strategies as st

from dgemma_jax import SamplingOptions
from dgemma_jax.config import GenerationConfig
from dgemma_jax.sampling.head import Prediction, predict
from dgemma_jax.sampling.options import PLAIN
from dgemma_jax.sampling.settings import Settings
from dgemma_jax.sampling.truncation import Truncation, truncate

truncate_jit = jax.jit(truncate)


def kept(probabilities: list[float], top_k: int = 0, top_p: float = 1.0) -> list[int]:
    """The tokens that may be drawn."""
    truncation = Truncation(jnp.array([top_k]), jnp.array([top_p], jnp.float32))
    return np.flatnonzero(truncate_jit(jnp.asarray(probabilities, jnp.float32)[None, None], truncation)[0, 0]).tolist()


def defined(weights: list[int], top_k: int, percent: int) -> list[int]:
    """The definition, in whole numbers; equally likely tokens are taken together."""

    def take(tokens: list[int], enough: int, measure: str) -> list[int]:
        taken: list[int] = []
        for level in sorted({weights[token] for token in tokens}, reverse=True):
            if taken and (len(taken) if measure == "count" else 100 * sum(weights[t] for t in taken)) >= enough:
                break
            taken += [token for token in tokens if weights[token] == level]
        return sorted(taken)

    tokens = [token for token, weight in enumerate(weights) if weight]
    tokens = take(tokens, top_k, "count") if top_k else tokens
    return take(tokens, percent * sum(weights[token] for token in tokens), "mass") if percent < 100 else tokens


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=12, max_size=12).filter(any), st.integers(0, 13), st.integers(0, 10))
def test_the_drawable_are_those_of_the_definition(weights: list[int], top_k: int, tenths: int) -> None:
    """Sums of small whole numbers do not round. Tenths do: a bound a little below is reached by the same tokens."""
    top_p = 1.0 if tenths == 10 else max(tenths / 10 - 1e-4, 0.0)
    assert kept(weights, top_k, top_p) == defined(weights, top_k, 10 * tenths)


def test_top_p_counts_what_top_k_leaves_as_the_whole() -> None:
    probabilities = [0.125, 0.5, 0.125, 0.25]
    assert kept(probabilities, top_p=0.625) == [1, 3]
    assert kept(probabilities, top_k=2, top_p=0.625) == [1], "0.5 of 0.75 is two thirds"


def test_tokens_as_likely_as_the_last_one_taken_stay_too() -> None:
    assert kept([0.25, 0.25, 0.0, 0.5], top_k=2) == [0, 1, 3]
    assert kept([0.25, 0.25, 0.0, 0.5], top_p=0.75) == [0, 1, 3]


@pytest.mark.parametrize("bound", [{"top_k": 1}, {"top_p": 0.0}, {"top_p": 1e-9}])
def test_the_likeliest_token_always_stays(bound: dict[str, float]) -> None:
    assert kept([0.3, 0.1, 0.4, 0.2], **bound) == [2]


def test_more_than_the_vocabulary_is_all_of_it() -> None:
    assert kept([0.3, 0.1, 0.4, 0.2], top_k=9) == [0, 1, 2, 3]


def rows(count: int, vocabulary: int) -> jax.Array:
    """Distributions with long tails, some of it too small for a sum near 1 to notice."""
    logits = 6 * np.random.default_rng(0).standard_normal((count, 5, vocabulary))
    return jax.nn.softmax(jnp.asarray(logits, jnp.float32))


def test_a_row_has_its_own_bounds_and_one_without_is_left_as_it_was() -> None:
    options = [SamplingOptions(top_k=3), PLAIN, SamplingOptions(top_p=0.9), SamplingOptions(top_k=4, top_p=0.7)]
    probability = rows(4, 3000)
    together = np.asarray(truncate_jit(probability, Truncation.of(options)))
    np.testing.assert_array_equal(together[1].view(np.int32), np.asarray(probability)[1].view(np.int32))
    for index, option in enumerate(options):
        if option.truncates:
            alone = truncate_jit(probability[index : index + 1], Truncation.of([option]))
            np.testing.assert_array_equal(together[index], alone[0])
            assert (alone > 0).sum() < (probability[index] > 0).sum()


def test_rows_without_bounds_have_no_truncation() -> None:
    assert Truncation.of([PLAIN, SamplingOptions(top_k=0, top_p=1.0, logprobs=20)]) is None
    bounds = Truncation.of([PLAIN, SamplingOptions(top_k=2**40), SamplingOptions(top_p=0.5)])
    assert bounds.top_k_B.tolist() == [0, 2**31 - 1, 0] and bounds.top_p_B.tolist() == [1.0, 1.0, 0.5]


def predicted(options: SamplingOptions) -> tuple[Prediction, jax.stages.Compiled]:
    """The vocabulary pass on random hidden states, and its program."""
    model = reading.model("text_only", backend="expert_blocks")
    truncation = Settings.of(GenerationConfig(), 1, options).truncation

    @jax.jit
    def run(params: nnx.State, x_BLD: jax.Array, uniform_BL: jax.Array, truncation: Truncation | None) -> Prediction:
        return predict(nnx.merge(model.graphdef, params).text, x_BLD, jnp.array([0.8]), uniform_BL, truncation)

    rng = np.random.default_rng(3)
    x = jnp.asarray(rng.standard_normal((1, 64, model.config.text.hidden_size)), jnp.float32)
    arguments = (model.params, x, jnp.asarray(rng.random((1, 64)), jnp.float32), truncation)
    return run(*arguments), run.lower(*arguments).compile()


def test_bounds_change_the_drawn_tokens_and_nothing_else() -> None:
    plain, _ = predicted(PLAIN)
    bounded, _ = predicted(SamplingOptions(top_k=1))
    assert (plain.drawn_BL != plain.argmax_BL).any()
    np.testing.assert_array_equal(bounded.drawn_BL, bounded.argmax_BL)
    for name in ("argmax_BL", "entropy_BL", "soft_BLD"):
        np.testing.assert_array_equal(getattr(plain, name), getattr(bounded, name), name)


def test_who_asks_for_no_bounds_does_not_pay_for_them_and_nobody_sorts_the_vocabulary() -> None:
    """Without bounds: the head there and back, and a few passes over the logits. With them: a bisection on top."""
    _, plain = predicted(PLAIN)
    _, bounded = predicted(SamplingOptions(top_k=5, top_p=0.9))
    config = reading.model("text_only", backend="expert_blocks").config.text
    logits = 64 * config.vocab_size
    assert 0 < plain.cost_analysis()["flops"] < (4 * config.hidden_size + 80) * logits
    assert plain.cost_analysis()["flops"] < bounded.cost_analysis()["flops"]
    assert " while(" not in plain.as_text() and " while(" in bounded.as_text()
    assert " sort(" not in plain.as_text() + bounded.as_text()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"top_k": -1}, r"top_k must not be negative \(0 is off\), found -1"),
        ({"top_p": 1.5}, r"top_p must be in \[0, 1\], found 1.5"),
        ({"top_p": float("nan")}, r"top_p must be in \[0, 1\], found nan"),
        ({"logprobs": 21}, r"logprobs must be None or in \[0, 20\], found 21"),
    ],
)
def test_options_outside_their_range_are_refused(wrong: dict[str, float], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        SamplingOptions(**wrong)


@pytest.mark.reference
def test_the_drawable_are_those_of_transformers() -> None:
    torch = pytest.importorskip("torch")
    from transformers.generation import logits_process

    probability = rows(1, 500)[0]
    scores = torch.log(torch.from_numpy(np.array(probability)))
    for top_k, top_p in ((7, 1.0), (0, 0.9), (0, 0.3), (20, 0.8)):
        wanted = logits_process.TopKLogitsWarper(top_k)(None, scores) if top_k else scores
        wanted = logits_process.TopPLogitsWarper(top_p)(None, wanted) if top_p < 1 else wanted
        bounds = Truncation.of([SamplingOptions(top_k=top_k, top_p=top_p)])
        found = np.asarray(truncate_jit(probability[None], bounds))[0] > 0
        np.testing.assert_array_equal(found, np.isfinite(wanted.numpy()), f"top_k {top_k}, top_p {top_p}")
