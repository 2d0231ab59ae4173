"""The committed reference results (written by `tools/golden.py`) as the tests read them."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import dgemma_jax
from dgemma_jax.cache import Cache
from dgemma_jax.config import SLIDING, GenerationConfig
from dgemma_jax.sampling import denoise
from dgemma_jax.sampling.draws import StepDraws
from dgemma_jax.sampling.settings import Settings

FOLDER = Path(__file__).parent
NAMES = ("window6", "clipped", "text_only", "causal_images")
Arrays = dict[str, np.ndarray]


@functools.cache
def model(name: str, dtype: str = "float32", backend: str | None = None) -> dgemma_jax.Model:
    """One of the tiny checkpoints; loaded once, so that what it compiles is compiled once."""
    return dgemma_jax.load(FOLDER / name, dtype=dtype, backend=backend)


@functools.cache
def goldens(name: str, folder: Path = FOLDER) -> Arrays:
    """Everything recorded for a checkpoint."""
    with np.load(folder / name / "goldens.npz") as file:
        return dict(file)


def cases(name: str, kind: str) -> list[str]:
    """The cases of a kind: "logits" or "sampling"."""
    return sorted({key.split("/")[1] for key in goldens(name) if key.startswith(f"{kind}/")})


def case(name: str, kind: str, of: str, folder: Path = FOLDER) -> Arrays:
    """The arrays of one case."""
    prefix = f"{kind}/{of}/"
    return {key.removeprefix(prefix): value for key, value in goldens(name, folder).items() if key.startswith(prefix)}


def images(arrays: Arrays) -> Arrays:
    """The arguments that carry images; empty without."""
    return {key: arrays[key] for key in ("patches", "patch_positions") if key in arrays}


def generation(arrays: Arrays) -> GenerationConfig:
    """The settings of a sampling case."""
    values = json.loads(str(arrays["settings"]))
    eos = tuple(values.pop("eos_token_id"))
    known = {field.name for field in dataclasses.fields(GenerationConfig)}
    return GenerationConfig(eos_token_ids=eos, **{key: value for key, value in values.items() if key in known})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RecordedDraws:
    """The draws of one canvas as they were recorded: a start, and for each step [S, B, L]."""

    start_BL: jax.Array
    uniform_SBL: jax.Array
    token_SBL: jax.Array

    @classmethod
    def of(cls, arrays: Arrays, canvas: int, steps: int = 12) -> RecordedDraws:
        """The draws of a case's canvas, padded to a common number of steps: one shape, one program."""

        def padded(key: str) -> np.ndarray:
            value = arrays[f"{canvas}/{key}"]
            return np.pad(value, ((0, steps - len(value)), (0, 0), (0, 0)))

        start = jnp.asarray(arrays[f"{canvas}/start"], jnp.int32)
        return cls(start, jnp.asarray(padded("uniform")), jnp.asarray(padded("token"), jnp.int32))

    def canvas(self) -> jax.Array:
        return self.start_BL

    def step(self, step_B: jax.Array) -> StepDraws:
        rows = jnp.arange(len(step_B))
        return StepDraws(self.uniform_SBL[step_B, rows], self.token_SBL[step_B, rows])


def count_canvases(golden: Arrays) -> int:
    """Canvases of a sampling case."""
    return sum(key.endswith("/start") for key in golden)


def first_state(model: dgemma_jax.Model, settings: Settings, draws: RecordedDraws) -> denoise.State:
    """Where a canvas begins."""
    return denoise.start(nnx.merge(model.graphdef, model.params), draws, settings)


def key_values(cache: Cache, window: int) -> Arrays:
    """A cache's keys and values in the order of positions; of sliding layers the last `window - 1` positions."""
    length = int(cache.length_B[0])
    arrays = {}
    for index, (kind, layer) in enumerate(zip(cache.layer_types, cache.layers, strict=True)):
        first = max(0, length - window + 1) if kind == SLIDING else 0
        slots = np.arange(first, length) % layer.key_BKSC.shape[2]
        for name, value in (("key", layer.key_BKSC), ("value", layer.value_BKSC)):
            arrays[f"{name}_{index}"] = np.moveaxis(np.asarray(value), 1, 2).astype(np.float32)[:, slots]
    return arrays
