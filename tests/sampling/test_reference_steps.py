"""Against transformers' own `generate`, its draws replayed: every canvas after every step is the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from golden import checking, reading
from golden.reading import RecordedDraws

from dgemma_jax import compiled
from dgemma_jax.generate import cut
from dgemma_jax.generate import generate as generate_batch
from dgemma_jax.sampling.settings import Settings

BACKENDS = {"window6": "all_experts", "clipped": "all_experts", "text_only": "expert_blocks"}
CASES = [(name, case) for name in reading.NAMES for case in reading.cases(name, "sampling")]


@pytest.mark.parametrize(("name", "case"), CASES)
def test_every_canvas_after_every_step_equals_the_reference(name: str, case: str) -> None:
    checking.check_steps(reading.model(name, backend=BACKENDS.get(name)), reading.case(name, "sampling", case))


@pytest.mark.parametrize(
    ("name", "case"), [("window6", "end_token"), ("text_only", "end_token"), ("causal_images", "five_steps")]
)
def test_generate_returns_the_sequences_of_the_reference(name: str, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole of `generate`, with nothing replaced but the draws."""
    model, golden = reading.model(name, backend=BACKENDS.get(name)), reading.case(name, "sampling", case)
    config = reading.generation(golden)

    def replay(structure: Any, numbers: Any, cache: Any, settings: Settings, seed: Any, index: Any) -> Any:
        draws = RecordedDraws.of(golden, int(index[0]))
        state = reading.first_state(model, settings, draws)
        while not np.asarray(state.done_B).all():
            state = compiled.denoise_step(structure, numbers, cache, state, settings, draws)
        return compiled.Denoised(state.argmax_BL, state.step_B)

    monkeypatch.setattr(compiled, "denoise_canvas", replay)
    result = generate_batch(model, golden["tokens"], 0, config, **reading.images(golden))
    answers = golden["sequences"][:, golden["tokens"].shape[1] :]
    # The reference answers in whole canvases; ours are cut at `max_new_tokens` exactly.
    wanted = [cut(answer, config.max_new_tokens, config.eos_token_ids) for answer in answers]
    for row, answer in zip(result.tokens, wanted, strict=True):
        assert row[: len(answer)].tolist() == answer
        assert (row[len(answer) :] == config.pad_token_id).all()
    steps = np.stack([golden[f"{index}/steps"] for index in range(reading.count_canvases(golden))], axis=1)
    np.testing.assert_array_equal(result.steps[result.steps > 0], steps[result.steps > 0])
    assert result.steps.shape == steps.shape


def test_the_recorded_cases_cover_what_they_are_for() -> None:
    """Rows that stop apart, canvases at full length, and end tokens inside a canvas do occur in the recordings."""
    stops = {(name, case): reading.case(name, "sampling", case)["0/steps"] for name, case in CASES}
    assert any(steps[0] != steps[1] for steps in stops.values())
    assert any((steps == 1).all() for (_, case), steps in stops.items() if case == "confident_at_once")
    assert any((steps == 5).all() for (_, case), steps in stops.items() if case == "five_steps")
    ended = [reading.case(name, "sampling", "end_token") for name in reading.NAMES]
    assert any((np.asarray(golden["sequences"]) == 0).any() for golden in ended)
    assert max(map(reading.count_canvases, ended)) == 3
