"""What this project writes, transformers loads, and computes the recorded logits with.

Needs torch and transformers: `make test-reference`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from golden import reading
from tolerances import LOGITS

from dgemma_jax.checkpoint.export import export
from tools import convert

pytestmark = [
    pytest.mark.reference,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # torch's and transformers' own
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
NAME = "window6"


def converted(folder: Path) -> Path:
    """To Orbax and back, in several files."""
    assert convert.main([str(reading.FOLDER / NAME), str(folder / "orbax")]) == 0
    assert convert.main([str(folder / "orbax"), str(folder / "back"), "--max-shard-size", "80KB"]) == 0
    return folder / "back"


def exported(folder: Path) -> Path:
    """From a loaded model, with the config.json that this project writes."""
    model = reading.model(NAME)
    export(folder, model.config, model.generation, model.params, jnp.dtype("float32"))
    return folder


@pytest.mark.parametrize("write", [converted, exported])
def test_transformers_computes_the_recorded_logits(write: Any, tmp_path: Path) -> None:
    # Here, not above: collecting the tests must not need torch.
    import torch
    from transformers import DiffusionGemmaForBlockDiffusion

    from tools import golden, oracle

    golden.quiet()
    model = DiffusionGemmaForBlockDiffusion.from_pretrained(write(tmp_path), dtype=torch.float32).eval()
    model.set_experts_implementation("eager")  # the plain loop over experts; the default needs 32 bits
    for case in reading.cases(NAME, "logits"):
        recorded = reading.case(NAME, "logits", case)
        with torch.no_grad():
            found = oracle.Prefix(model, recorded).logits(recorded["canvas"], None)
        np.testing.assert_allclose(found.numpy(), recorded["first"], rtol=0, atol=LOGITS)
