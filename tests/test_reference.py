"""Live against transformers, on checkpoints that nobody has seen before; and the committed goldens made again.

Needs torch and transformers: `make test-reference`.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden import checking, reading
from tolerances import LOGITS

import dgemma_jax
from dgemma_jax.checkpoint.safetensors import TensorFiles

pytestmark = [
    pytest.mark.reference,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # torch's and transformers' own
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.fixture(scope="module")
def golden_tool() -> Any:
    """Imported here, not above: collecting the tests must not need torch."""
    from tools import golden

    golden.quiet()
    return golden


@pytest.fixture(scope="module")
def fresh(golden_tool: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same shapes with other weights, prompts and draws."""
    folder = tmp_path_factory.mktemp("fresh")
    for spec in golden_tool.SPECS:
        golden_tool.write(dataclasses.replace(spec, seed=spec.seed + 1000), folder / spec.name)
    return folder


@pytest.fixture(scope="module")
def again(golden_tool: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("again")
    for spec in golden_tool.SPECS:
        golden_tool.write(spec, folder / spec.name)
    return folder


@pytest.mark.parametrize("backend", ["all_experts", "expert_blocks"])
@pytest.mark.parametrize("name", reading.NAMES)
def test_fresh_checkpoints_agree_with_the_reference(name: str, backend: str, fresh: Path) -> None:
    model = dgemma_jax.load(fresh / name, dtype="float32", backend=backend)
    for case in reading.cases(name, "logits"):
        golden = reading.case(name, "logits", case, fresh)
        checking.check_logits(model, golden)
        if "soft_tokens" in golden:
            checking.check_soft_tokens(model, golden)
    for case in reading.cases(name, "sampling"):
        checking.check_steps(model, reading.case(name, "sampling", case, fresh))


@pytest.mark.parametrize("name", reading.NAMES)
def test_the_tool_writes_the_committed_checkpoints(name: str, again: Path) -> None:
    committed, made = TensorFiles.open(reading.FOLDER / name), TensorFiles.open(again / name)
    assert made.names == committed.names
    for tensor in made.names:
        np.testing.assert_array_equal(made.read(tensor), committed.read(tensor), tensor)
    for file in ("config.json", "generation_config.json"):
        assert (again / name / file).read_text() == (reading.FOLDER / name / file).read_text()


@pytest.mark.parametrize("name", reading.NAMES)
def test_the_tool_reproduces_the_committed_goldens(name: str, again: Path) -> None:
    """What goes in is equal, and so is every discrete choice; numbers that come out are near."""
    committed, made = reading.goldens(name), reading.goldens(name, again)
    assert made.keys() == committed.keys()
    for key, value in committed.items():
        if value.dtype.kind in "iU" or key.endswith(("/uniform", "/patches")):
            np.testing.assert_array_equal(made[key], value, key)
        elif not key.startswith("bfloat16/") and key != "noise":
            checking.near(made[key], value, LOGITS)


@pytest.mark.parametrize("name", reading.NAMES)
def test_the_tolerance_is_above_the_noise_of_float32_itself(name: str) -> None:
    assert reading.goldens(name)["noise"] < LOGITS
