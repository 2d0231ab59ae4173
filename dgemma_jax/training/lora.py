"""Low-rank adapters (LoRA, arXiv 2106.09685): a few numbers beside frozen weights, trained in their place.

    weight' = weight + alpha / rank * B @ A        A: [rank, in], B: [out, rank] and zero at first

Encoder and decoder pass read the same weights, so one adapter serves both. Training, merging and serving compute the
same sum, in float32, rounded to the weight's type: what was trained is what answers. An adapter's folder holds
`adapter_model.safetensors` and `adapter_config.json`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dgemma_jax.checkpoint.names import Entry, entries, published_name
from dgemma_jax.checkpoint.safetensors import CheckpointError, TensorFiles
from dgemma_jax.checkpoint.safetensors_writing import write_tensors
from dgemma_jax.config import ConfigError, ModelConfig
from dgemma_jax.model.parameter import einsum
from dgemma_jax.strict_json import StrictObject, load_object, raise_collected, show

WEIGHTS_FILE, CONFIG_FILE = "adapter_model.safetensors", "adapter_config.json"
TARGETS = {
    "attention": "attention",
    "mlp": "dense mlp",
    "experts": "experts",
    "router": "router",
    "self_conditioning": "self_conditioning",
}
"""What may be adapted: the name of a target, and the part of the model (`Entry.part`) whose matrices it means."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Size and places of an adapter. `base`: the checkpoint it was trained on, for people and for merging."""

    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] = ("attention", "mlp")
    base: str = ""

    def __post_init__(self) -> None:
        if self.rank < 1 or not self.alpha > 0:
            raise ConfigError(f"rank and alpha of an adapter must be positive, found {self.rank} and {self.alpha}")
        if not self.targets or (unknown := set(self.targets) - set(TARGETS)):
            found = ", ".join(sorted(unknown)) if self.targets else "none"
            raise ConfigError(f"targets of an adapter must be of {', '.join(TARGETS)}, found {found}")

    @property
    def scale(self) -> float:
        """What B @ A counts."""
        return self.alpha / self.rank


@dataclasses.dataclass(frozen=True)
class Adapter:
    """`params`: below the path of each adapted weight its "a" and "b", float32."""

    config: LoraConfig
    params: nnx.State


def adapted(config: ModelConfig, targets: Iterable[str]) -> list[Entry]:
    """The matrices that `targets` mean; those of all experts of a layer are one entry."""
    parts = {TARGETS[target] for target in targets}
    return [entry for entry in entries(config) if entry.part in parts and len(entry.published_shape) > 1]


def fresh(config: ModelConfig, lora: LoraConfig, seed: int) -> Adapter:
    """An adapter that changes nothing yet: A is random, B zero."""
    leaves = []
    for number, entry in enumerate(adapted(config, lora.targets)):
        a_shape, b_shape = _shapes(entry, lora.rank)
        key = jax.random.fold_in(jax.random.key(seed), number)
        leaves += _pair(entry, jax.random.normal(key, a_shape) * a_shape[-1] ** -0.5, jnp.zeros(b_shape))
    return Adapter(lora, nnx.from_flat_state(leaves))


def combine(trained: nnx.State, frozen: nnx.State, scale: float) -> nnx.State:
    """The model's parameters: `frozen` with `scale` times B @ A added to each weight that `trained` has them for."""
    leaves, matrices = dict(nnx.to_flat_state(frozen)), dict(nnx.to_flat_state(trained))
    for path in dict.fromkeys(path[:-1] for path in matrices):
        both = matrices[*path, "a"][...], matrices[*path, "b"][...]
        leaves[path] = leaves[path].replace(_sum(leaves[path][...], *both, jnp.float32(scale)))
    return nnx.from_flat_state(leaves.items())


def merge(params: nnx.State, adapter: Adapter) -> nnx.State:
    """Parameters that need no adapter any more: the same numbers that training with it computed with."""
    return combine(adapter.params, params, adapter.config.scale)


def save(folder: Path, adapter: Adapter) -> None:
    """Writes the adapter's two files into a folder that exists or is made."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        _name(path[:-1], str(path[-1])): np.asarray(leaf[...], np.float32)
        for path, leaf in nnx.to_flat_state(adapter.params)
    }
    (folder / CONFIG_FILE).write_text(json.dumps(dataclasses.asdict(adapter.config), indent=2) + "\n", encoding="utf-8")
    write_tensors(folder / WEIGHTS_FILE, tensors, {"format": "pt"})


def read(folder: Path, config: ModelConfig) -> Adapter:
    """The adapter in a folder, for a model of this configuration.

    Raises:
        ConfigError: `adapter_config.json` is missing or not understood.
        CheckpointError: weights that are missing, damaged, or do not fit the model: all names and shapes are listed.
    """
    lora = read_config(folder)
    if not (folder / WEIGHTS_FILE).is_file():
        raise CheckpointError(f"{folder} has no {WEIGHTS_FILE}")
    files = TensorFiles.open_file(folder / WEIGHTS_FILE)
    wanted = adapted(config, lora.targets)
    _require_match(wanted, lora, files)
    leaves = []
    for entry in wanted:
        a, b = (jnp.asarray(files.read(_name(entry.path, which)), jnp.float32) for which in "ab")
        leaves += _pair(entry, a, b)
    return Adapter(lora, nnx.from_flat_state(leaves))


def read_config(folder: Path) -> LoraConfig:
    """Size and places of the adapter in a folder. Raises ConfigError, naming what is wrong."""
    if not (folder / CONFIG_FILE).is_file():
        raise ConfigError(f"{folder} is not an adapter's folder: it has no {CONFIG_FILE}")
    problems: list[str] = []
    values = StrictObject(load_object(folder / CONFIG_FILE), problems)
    rank, alpha = values.plain("rank", "int"), values.plain("alpha", "float")
    targets, base = values.values.get("targets"), values.values.get("base", "")
    values.asked |= {"targets", "base"}
    if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
        values.problem("targets", f"wanted a list of {', '.join(TARGETS)}, found {show(targets)}")
    if not isinstance(base, str):
        values.wrong("base", "text")
    values.finish()
    raise_collected(folder / CONFIG_FILE, problems)
    try:
        return LoraConfig(rank=rank, alpha=alpha, targets=tuple(targets or ()), base=str(base))
    except ConfigError as error:
        raise ConfigError(f"{folder / CONFIG_FILE}: {error}") from error


@jax.jit
def _sum(weight: jax.Array, a: jax.Array, b: jax.Array, scale: jax.Array) -> jax.Array:
    """Published and our shapes hold the same numbers in the same order: heads are one axis or two."""
    product = einsum("...or,...ri->...oi", b, a)
    # fp32: in bf16 a small change of a weight would be rounded away twice.
    return (weight.astype(jnp.float32) + scale * product.reshape(weight.shape)).astype(weight.dtype)


def _pair(entry: Entry, a: jax.Array, b: jax.Array) -> list[tuple]:
    experts = ("experts",) * (a.ndim - 2)
    return [
        ((*entry.path, "a"), nnx.Param(a, axes=(*experts, "rank", "input"))),
        ((*entry.path, "b"), nnx.Param(b, axes=(*experts, "output", "rank"))),
    ]


def _shapes(entry: Entry, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    *experts, outputs, inputs = entry.published_shape
    return (*experts, rank, inputs), (*experts, outputs, rank)


def _name(path: tuple, which: str) -> str:
    return f"{published_name(path)[0].removesuffix('.weight')}.lora_{which.upper()}.weight"


def _require_match(wanted: list[Entry], lora: LoraConfig, files: TensorFiles) -> None:
    shapes = {}
    for entry in wanted:
        for which, shape in zip("ab", _shapes(entry, lora.rank), strict=True):
            shapes[_name(entry.path, which)] = shape
    lines = [f"  - {name} {shape} (missing)" for name, shape in shapes.items() if name not in files]
    lines += [f"  + {name} {files.shape(name)} (no such weight)" for name in files.names if name not in shapes]
    lines += [
        f"  ! {name}: wanted {shape}, found {files.shape(name)}"
        for name, shape in shapes.items()
        if name in files and files.shape(name) != shape
    ]
    if lines:
        raise CheckpointError(f"{files.folder}: the adapter does not fit the model:\n" + "\n".join(sorted(lines)))
