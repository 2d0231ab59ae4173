"""The model that is measured: of a checkpoint folder, or of any configuration with random weights."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

import dgemma_jax
from dgemma_jax.checkpoint.names import abstract_model
from dgemma_jax.config import PRESETS, GenerationConfig, ModelConfig
from dgemma_jax.config_json import read_model_config
from dgemma_jax.model.diffusion_gemma import DiffusionGemma
from dgemma_jax.model.moe import BACKENDS, choose_backend
from dgemma_jax.sampling.heads import HEADS, choose_head
from dgemma_jax.sharding import describe, make_mesh, parameter_sharding, spread
from tools.options import positive


def add_options(parser: argparse.ArgumentParser, *, context: bool = True, mesh: bool = True) -> None:
    """What every benchmark of a model takes."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--preset", choices=sorted(PRESETS), default="mini", help="a known size, random weights (default %(default)s)"
    )
    which.add_argument("--checkpoint", type=Path, metavar="DIR", help="a checkpoint folder instead")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="float32", help="default %(default)s")
    parser.add_argument("--moe-backend", choices=sorted(BACKENDS), help="how the experts run (default: by device)")
    parser.add_argument("--head", choices=sorted(HEADS), help="how the vocabulary is passed over (default: by size)")
    parser.add_argument("--repeats", type=positive, default=5, help="rounds (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and tokens (default %(default)s)")
    if mesh:
        add_mesh(parser)
    if context:
        parser.add_argument("--context", type=positive, default=512, help="prompt tokens (default %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def add_mesh(parser: argparse.ArgumentParser) -> None:
    """The devices to run on."""
    parser.add_argument(
        "--mesh", metavar="AXES", help="devices, as expert=8 or expert=4,model=2 (default: all accelerators, one CPU)"
    )


def mesh_of(options: argparse.Namespace, config: ModelConfig) -> Mesh | None:
    """The mesh that is asked for. Raises ValueError for one that cannot be."""
    return make_mesh(options.mesh, config.text) if "mesh" in options else None


def config_of(options: argparse.Namespace) -> ModelConfig:
    """The configuration alone."""
    return read_model_config(options.checkpoint) if options.checkpoint else PRESETS[options.preset]


def backends_of(options: argparse.Namespace, config: ModelConfig) -> tuple[str, str]:
    """How experts and vocabulary run."""
    backend = options.moe_backend or choose_backend(config.text, jax.default_backend())
    return backend, options.head or choose_head(config.text)


def model_of(options: argparse.Namespace) -> dgemma_jax.Model:
    """The model, on its devices."""
    config, dtype = config_of(options), jnp.dtype(options.dtype)
    backend, head = backends_of(options, config)
    if options.checkpoint:
        return dgemma_jax.load(options.checkpoint, dtype=options.dtype, mesh=options.mesh, backend=backend, head=head)
    mesh = mesh_of(options, config)
    if mesh is None:
        graphdef, params = nnx.split(DiffusionGemma(config, nnx.Rngs(options.seed), dtype, backend, head))
    else:
        graphdef, params = nnx.split(spread(abstract_model(config, dtype, backend, head), mesh))
        places = jax.tree.map(
            lambda leaf: leaf.replace(parameter_sharding(leaf, mesh)),
            params,
            is_leaf=lambda x: isinstance(x, nnx.Variable),
        )

        def fresh() -> nnx.State:
            return nnx.state(DiffusionGemma(config, nnx.Rngs(options.seed), dtype, backend, head))

        params = jax.jit(fresh, out_shardings=places)()  # each device makes its own part
    return dgemma_jax.Model(config, GenerationConfig(), None, None, dtype, graphdef, params, mesh)


def settings_of(options: argparse.Namespace, model: ModelConfig) -> dict[str, Any]:
    """What a report says of them."""
    backend, head = backends_of(options, model)
    found = {"model": str(options.checkpoint or options.preset), "dtype": options.dtype}
    found |= {"canvas": model.canvas_length, "experts": backend, "head": head, "rounds": options.repeats}
    if "mesh" in options:
        found["mesh"] = describe(mesh_of(options, model))
    return found | ({"context": options.context} if "context" in options else {})


def tokens_of(options: argparse.Namespace, config: ModelConfig, count: int) -> np.ndarray:
    """Random tokens, [1, count]."""
    return np.random.default_rng(options.seed).integers(0, config.text.vocab_size, (1, count))


def endless(generation: GenerationConfig, steps: int) -> GenerationConfig:
    """Settings under which a canvas takes exactly so many steps."""
    return dataclasses.replace(generation, max_denoising_steps=steps, confidence_threshold=1e-30)
