"""The model that is measured: of a checkpoint folder, or of any configuration with random weights."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

import dgemma_jax
from dgemma_jax.checkpoint.names import abstract_model
from dgemma_jax.config import PRESETS, GenerationConfig, ModelConfig
from dgemma_jax.config_json import read_model_config
from dgemma_jax.model import gpu
from dgemma_jax.model.moe import BACKENDS, choose_backend
from dgemma_jax.model.quantized import Quantized
from dgemma_jax.sampling.heads import HEADS, choose_head
from dgemma_jax.sharding import describe, make_mesh, spread
from tools.bench_weights import KINDS, filled, loudness
from tools.options import positive, seed


def add_options(parser: argparse.ArgumentParser) -> None:
    """What every benchmark of a model takes."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--preset", choices=sorted(PRESETS), default="mini", help="a known size, random weights (default %(default)s)"
    )
    which.add_argument("--config", type=Path, metavar="DIR", help="random weights for the config.json of a folder")
    which.add_argument("--checkpoint", type=Path, metavar="DIR", help="a checkpoint folder instead")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="float32", help="default %(default)s")
    parser.add_argument("--moe-backend", choices=sorted(BACKENDS), help="how the experts run (default: by device)")
    parser.add_argument("--head", choices=sorted(HEADS), help="how the vocabulary is passed over (default: by size)")
    parser.add_argument("--repeats", type=positive, default=5, help="rounds (default %(default)s)")
    parser.add_argument("--seed", type=seed, default=0, help="of weights and tokens (default %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def add_layers(parser: argparse.ArgumentParser) -> None:
    """What benchmarks of layers take besides."""
    add_mesh(parser)
    parser.add_argument("--quantize", choices=KINDS, help="weights of 8 or 4 bits; fp8 of random ones (default: full)")
    parser.add_argument(
        "--skew",
        type=float,
        default=1.0,
        metavar="TIMES",
        help="of random weights, tokens of the busiest expert, about, in parts of the mean (default: as chance has it)",
    )


def add_prompts(parser: argparse.ArgumentParser) -> None:
    """What benchmarks of canvases behind prompts take besides."""
    parser.add_argument("--context", type=positive, default=512, help="prompt tokens (default %(default)s)")
    add_rows(parser)


def add_rows(parser: argparse.ArgumentParser) -> None:
    """How many canvases are together."""
    parser.add_argument("--rows", type=positive, default=1, help="canvases (default %(default)s)")


def add_mesh(parser: argparse.ArgumentParser) -> None:
    """The devices to run on."""
    parser.add_argument(
        "--mesh", metavar="AXES", help="devices, as expert=8 or expert=4,model=2 (default: all accelerators, one CPU)"
    )


def mesh_of(options: argparse.Namespace, config: ModelConfig) -> Mesh | None:
    """The mesh that is asked for. Raises ValueError for one that cannot be."""
    return make_mesh(options.mesh, config.text) if "mesh" in options else None


def config_of(options: argparse.Namespace) -> ModelConfig:
    """The configuration alone; of random weights without the vision tower, which nothing here runs."""
    if options.checkpoint:
        return read_model_config(options.checkpoint)
    config = read_model_config(options.config) if options.config else PRESETS[options.preset]
    return dataclasses.replace(config, vision=None)


class Choice(NamedTuple):
    """How experts and vocabulary run, and in what the matrices of layers are: one of `KINDS`, None for full ones."""

    backend: str
    head: str
    quantize: str | None


def choice_of(options: argparse.Namespace, config: ModelConfig) -> Choice:
    """What is asked for, or follows from the device."""
    quantize = options.quantize if "quantize" in options else None
    backend = options.moe_backend or choose_backend(
        config.text, jax.default_backend(), quantized=quantize is not None, kernels=gpu.runs_kernels()
    )
    return Choice(backend, options.head or choose_head(config.text), quantize)


def choice_in(model: dgemma_jax.Model) -> Choice:
    """What a model does."""
    text = nnx.merge(model.graphdef, model.params).text
    experts = text.layers[0].experts
    matrix = experts.gate_up_EFD[...]
    quantize = None
    if isinstance(matrix, Quantized):
        quantize = "fp8" if matrix.is_fp8 else f"int{matrix.bits}"
    return Choice(experts.backend, text.head, quantize)


_models: dict[Any, dgemma_jax.Model] | None = None
_one_at_a_time = threading.Lock()


@contextlib.contextmanager
def shared() -> Iterator[None]:
    """Within it the same model is made once, whatever benchmarks ask for it, and kept to the end."""
    global _models
    _models = {}
    try:
        yield
    finally:
        _models = None


def model_of(options: argparse.Namespace) -> dgemma_jax.Model:
    """The model, on its devices. Raises ValueError for a skew that cannot be."""
    which = ("checkpoint", "config", "preset", "dtype", "moe_backend", "head", "quantize", "skew", "mesh", "seed")
    key = tuple(getattr(options, name) for name in which)
    with _one_at_a_time:
        if _models is None or key not in _models:
            made = _made(options)
            if _models is None:
                return made
            _models[key] = made
        return _models[key]


def _made(options: argparse.Namespace) -> dgemma_jax.Model:
    if options.checkpoint:
        if options.skew != 1:
            raise ValueError("--skew is of random weights: a checkpoint routes as it does")
        choices = {"mesh": options.mesh, "quantize": options.quantize}
        return dgemma_jax.load(
            options.checkpoint, options.dtype, backend=options.moe_backend, head=options.head, **choices
        )
    config, dtype = config_of(options), jnp.dtype(options.dtype)
    backend, head, quantize = choice_of(options, config)
    mesh, loud = mesh_of(options, config), loudness(config.text, options.skew)
    graphdef, state = nnx.split(spread(abstract_model(config, dtype, backend, head), mesh))
    params = filled(state, options.seed, quantize=quantize, loud=loud, mesh=mesh)
    return dgemma_jax.Model(config, GenerationConfig(), None, None, dtype, graphdef, params, mesh)


def settings_of(options: argparse.Namespace, config: ModelConfig, choice: Choice) -> dict[str, Any]:
    """What a report says of them."""
    found = {"model": str(options.checkpoint or options.config or options.preset), "dtype": options.dtype}
    found |= {"canvas": config.canvas_length, "experts": choice.backend, "head": choice.head, "rounds": options.repeats}
    if "mesh" in options:
        found |= {"mesh": describe(mesh_of(options, config)), "quantize": choice.quantize, "skew": options.skew}
    return found | {name: getattr(options, name) for name in ("context", "rows", "tokens") if name in options}


def tokens_of(options: argparse.Namespace, config: ModelConfig, count: int) -> np.ndarray:
    """Random tokens, [rows, count]."""
    return np.random.default_rng(options.seed).integers(0, config.text.vocab_size, (options.rows, count))


def endless(generation: GenerationConfig, steps: int) -> GenerationConfig:
    """Settings under which a canvas takes exactly so many steps."""
    return dataclasses.replace(generation, max_denoising_steps=steps, confidence_threshold=1e-30)
