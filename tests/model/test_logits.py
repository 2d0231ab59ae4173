"""Against transformers' recorded results, through the public functions: prefill, denoise_logits, commit."""

from __future__ import annotations

import numpy as np
import pytest
from golden import checking, reading
from tolerances import BFLOAT16_MEDIAN, BFLOAT16_RATIO

BACKENDS = {name: "expert_blocks" if name == "text_only" else "all_experts" for name in reading.NAMES}
RUNS = [(name, case, BACKENDS[name]) for name in reading.NAMES for case in reading.cases(name, "logits")]


@pytest.mark.parametrize(("name", "case", "backend"), RUNS)
def test_logits_and_cache_equal_the_reference(name: str, case: str, backend: str) -> None:
    checking.check_logits(reading.model(name, backend=backend), reading.case(name, "logits", case))


@pytest.mark.parametrize("name", ["window6", "clipped", "causal_images"])
@pytest.mark.parametrize("case", ["image", "two_images", "image_each"])
def test_soft_tokens_equal_the_reference(name: str, case: str) -> None:
    checking.check_soft_tokens(reading.model(name), reading.case(name, "logits", case))


def test_bfloat16_is_as_near_to_float32_as_the_reference_is() -> None:
    name = "causal_images"
    model, golden = reading.model(name, "bfloat16"), reading.case(name, "logits", "long")
    theirs = {key: reading.goldens(name)[f"bfloat16/{key}"] for key in ("first", "committed", "conditioned")}
    cache = model.prefill(golden["tokens"])
    ours = {
        "first": model.denoise_logits(cache, golden["canvas"]),
        "conditioned": model.denoise_logits(cache, golden["next_canvas"], theirs["first"]),
        "committed": model.denoise_logits(model.commit(cache, golden["canvas"]), golden["next_canvas"]),
    }
    for key, logits in ours.items():
        found = np.asarray(logits)
        assert np.median(np.abs(found - theirs[key])) < BFLOAT16_MEDIAN
        distance, allowed = np.median(np.abs(found - golden[key])), np.median(np.abs(theirs[key] - golden[key]))
        assert distance < BFLOAT16_RATIO * allowed, key
