"""`bench moe`: the experts of one layer, each backend in turn, once they agree."""

from __future__ import annotations

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from dgemma_jax.config import TextConfig
from dgemma_jax.model.expert_parallel import over_mesh
from dgemma_jax.model.moe import BACKENDS
from dgemma_jax.model.moe_grouped import supports
from dgemma_jax.model.router import Routing
from dgemma_jax.sharding import place, spec
from tools import bench_model, roofline
from tools.bench_report import printing, report, shown
from tools.bench_step import ratio
from tools.bench_timing import figure, interleaved, peak_candidates, peaks, temporaries
from tools.options import names, positive

SLOWEST = "ragged_dot"
AGREE = {"float32": 1e-4, "bfloat16": 0.05}
"""Largest difference between backends, on outputs of order 1."""


def add_command(commands: Any) -> None:
    """Declares the command."""
    parser = commands.add_parser("moe", help="the experts of one layer", description=__doc__)
    bench_model.add_options(parser, context=False)
    parser.add_argument("--tokens", type=positive, default=256, help="tokens of the pass (default %(default)s)")
    parser.add_argument(
        "--backends", type=names, metavar="NAMES", help="commas between them (default: all that this device runs well)"
    )
    parser.set_defaults(run=printing(measure))


def measure(options: argparse.Namespace) -> str:
    """Measures and reports. Raises ValueError for an unknown backend, or for backends that do not agree."""
    config = bench_model.config_of(options)
    mesh = bench_model.mesh_of(options, config)
    own, _ = bench_model.backends_of(options, config)
    wanted = dict.fromkeys((own, *(options.backends or at_home(config.text))))
    if unknown := sorted(set(wanted) - set(BACKENDS)):
        raise ValueError(f"--backends must be some of {', '.join(BACKENDS)}, found {', '.join(unknown)}")
    dtype = jnp.dtype(options.dtype)
    arguments = spread(inputs(config.text, options.tokens, dtype, options.seed), mesh)
    compiled = {name: jax.jit(over_mesh(BACKENDS[name], mesh)).lower(*arguments).compile() for name in wanted}
    check(compiled, arguments, AGREE[options.dtype])
    candidates = {name: (lambda run=run: run(*arguments)) for name, run in compiled.items()}
    samples = interleaved({**peak_candidates(dtype), **candidates}, options.repeats)
    peak = peaks(samples, mesh)
    work = roofline.experts(config.text, options.tokens, dtype.itemsize)
    figures = [figure(name, samples[name], work, peak) for name in wanted]
    more: dict[str, Any] = {"temporaries MB": {name: temporaries(one) for name, one in compiled.items()}}
    if SLOWEST in wanted and own != SLOWEST:
        more[f"{own}, times as fast as {SLOWEST}"] = ratio(samples[SLOWEST], samples[own])
    settings = {**bench_model.settings_of(options, config), "tokens": options.tokens}
    return shown(report("moe", settings, figures, peak, **more), options.json)


def at_home(config: TextConfig) -> list[str]:
    """The backends, without kernels that the device would interpret or cannot cut the matrices for."""
    device = jax.default_backend()
    kernels = {
        "grouped_blocks": device == "gpu" and supports(config.moe_intermediate_size, config.hidden_size),
        "gmm": device == "tpu",
    }
    return [name for name in BACKENDS if kernels.get(name, True)]


def inputs(config: Any, tokens: int, dtype: jnp.dtype, seed: int) -> tuple[jax.Array, Routing, jax.Array, jax.Array]:
    """Random hidden states, an even routing, and weights."""
    keys = jax.random.split(jax.random.key(seed), 4)
    E, D, F = config.num_experts, config.hidden_size, config.moe_intermediate_size

    def normal(key: jax.Array, *shape: int, std: float = 1.0) -> jax.Array:
        return (jax.random.normal(key, shape) * std).astype(dtype)

    probability_AE = jax.nn.softmax(jax.random.normal(keys[3], (tokens, E)), axis=-1)
    weight_AX, expert_AX = jax.lax.top_k(probability_AE, config.top_k_experts)
    routing = Routing(expert_AX, weight_AX / jnp.sum(weight_AX, axis=-1, keepdims=True), probability_AE)
    gate_up_EFD = normal(keys[1], E, 2 * F, D, std=D**-0.5)
    return normal(keys[0], tokens, D), routing, gate_up_EFD, normal(keys[2], E, D, F, std=F**-0.5)


def spread(arguments: tuple[Any, ...], mesh: Mesh | None) -> tuple[Any, ...]:
    """Tokens and routing whole on every device, weights with their experts."""
    if mesh is None:
        return arguments
    x_AD, routing, *weights = arguments
    places = (NamedSharding(mesh, spec(("experts", "", ""), weight.shape, mesh)) for weight in weights)
    return (*place((x_AD, routing), mesh), *map(jax.device_put, weights, places))


def check(compiled: dict[str, jax.stages.Compiled], arguments: tuple, within: float) -> None:
    """Raises ValueError where two backends give different outputs."""
    outputs = {name: np.asarray(run(*arguments), np.float32) for name, run in compiled.items()}
    first, *others = outputs
    for other in others:
        difference = float(np.abs(outputs[first] - outputs[other]).max())
        if not difference <= within:
            raise ValueError(f"{first} and {other} differ by {difference:.2g}, wanted at most {within}")
