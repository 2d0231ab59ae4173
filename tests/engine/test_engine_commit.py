"""Canvases that are done, on their way into the cache: in one pass where that is cheaper, and nobody else's rows."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from golden import reading
from tolerances import REORDERED

from dgemma_jax import Engine, GenerationConfig, Model, Request, stream
from dgemma_jax.engine import Answer
from dgemma_jax.engine.batch import Batch, commit_together

TWO_STEPS = GenerationConfig(
    max_denoising_steps=2, entropy_bound=2.0, confidence_threshold=1e-9, eos_token_ids=()
)  # so canvases that begin together end together


@pytest.fixture(params=["float32", "bfloat16"])
def model(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Model:
    monkeypatch.setattr("dgemma_jax.buckets.SMALLEST_CAPACITY", 64)
    return dataclasses.replace(reading.model("window6", request.param, "all_experts"), generation=TWO_STEPS)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of those over the whole batch, how many rows each commits."""
    found, read_at_once = [], Batch.read_at_once

    def watched(batch: Batch, canvases: dict[int, np.ndarray]) -> None:
        found.append(len(canvases))
        read_at_once(batch, canvases)

    monkeypatch.setattr(Batch, "read_at_once", watched)
    return found


@pytest.mark.parametrize(("platform", "least"), [("cpu", {2: 2, 4: 3, 8: 5}), ("gpu", {2: 2, 4: 2, 8: 2, 16: 4})])
def test_one_pass_over_all_rows_is_taken_where_it_is_cheaper(platform: str, least: dict[int, int]) -> None:
    assert not commit_together(1, 1, platform)
    for rows, wanted in least.items():
        assert [n for n in range(1, rows + 1) if commit_together(n, rows, platform)] == list(range(wanted, rows + 1))


@pytest.mark.parametrize("apart", [False, True])
def test_canvases_that_end_together_are_committed_in_one_pass_and_answers_are_those_of_each_alone(
    model: Model, passes: list[int], apart: bool
) -> None:
    wanted = [Request(tokens=tuple(range(6, 6 + n)), max_new_tokens=24, seed=n) for n in (5, 9, 12)]
    engine = Engine(model, slots=3, apart=apart)
    answers = {engine.submit(one): Answer() for one in wanted}
    for id, event in engine.run():
        answers[id] = answers[id].after(event)
    engine.close()
    assert passes == ([] if apart else [3, 3]), "of three canvases the last one is not read"
    for one, answer in zip(wanted, answers.values(), strict=True):
        expected = Answer()
        for event in stream(model, one.tokens, max_new_tokens=24, seed=one.seed, generation=TWO_STEPS):
            expected = expected.after(event)
        assert answer == expected


@pytest.mark.parametrize("model", ["float32"], indirect=True)
def test_a_pass_over_the_batch_leaves_rows_that_do_not_count_as_they_are(model: Model) -> None:
    engine = Engine(model, slots=3)
    device = engine._device
    batch = Batch(model, device.budget, apart=False)
    prompts = [tuple(range(6, 6 + length)) for length in (50, 7)]
    for id, tokens in enumerate(prompts):
        batch.join(id, device.plan(Request(tokens=tokens)), model.prefill([tokens]))
    before, canvas_L = batch.copy(0), np.arange(20, 20 + model.config.canvas_length)
    batch.read_at_once({1: canvas_L})
    for x, same in zip(jax.tree.leaves(batch.copy(0)), jax.tree.leaves(before), strict=True):
        np.testing.assert_array_equal(x, same)
    alone = model.commit(model.prefill(prompts[1:]), canvas_L[None])
    for x, same in zip(jax.tree.leaves(batch.copy(1)), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(x, same, rtol=0, atol=REORDERED)
    engine.close()
