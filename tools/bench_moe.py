"""`bench moe`: the experts of one layer, each backend in turn, once they agree."""

from __future__ import annotations

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from dgemma_jax.config import TextConfig
from dgemma_jax.model.expert_parallel import over_mesh
from dgemma_jax.model.moe import BACKENDS, Experts
from dgemma_jax.model.moe_grouped import supports
from dgemma_jax.model.router import Routing
from dgemma_jax.sharding import place
from tools import bench_model, roofline
from tools.bench_report import printing, report, shown
from tools.bench_step import BUSIEST, busiest, ratio
from tools.bench_timing import figure, interleaved, peak_candidates, peaks, temporaries
from tools.bench_weights import filled, loudness
from tools.options import names, positive

SLOWEST = "ragged_dot"
AGREE = {"float32": 1e-4, "bfloat16": 0.05}
"""Largest difference between backends, on outputs of order 1."""


def add_command(commands: Any) -> None:
    """Declares the command."""
    parser = commands.add_parser("moe", help="the experts of one layer", description=__doc__)
    bench_model.add_options(parser)
    bench_model.add_layers(parser)
    parser.add_argument("--tokens", type=positive, default=256, help="tokens of the pass (default %(default)s)")
    parser.add_argument(
        "--backends", type=names, metavar="NAMES", help="commas between them (default: all that this device runs well)"
    )
    parser.set_defaults(run=printing(measure))


def measure(options: argparse.Namespace) -> str:
    """Measures and reports. Raises ValueError for an unknown backend, or for backends that do not agree."""
    config = bench_model.config_of(options)
    mesh, choice = bench_model.mesh_of(options, config), bench_model.choice_of(options, config)
    own, quantize = choice.backend, choice.quantize
    wanted = dict.fromkeys((own, *(options.backends or at_home(config.text, quantize))))
    if unknown := sorted(set(wanted) - set(BACKENDS)):
        raise ValueError(f"--backends must be some of {', '.join(BACKENDS)}, found {', '.join(unknown)}")
    dtype = jnp.dtype(options.dtype)
    x_AD, routing = place(inputs(config.text, options.tokens, dtype, options.seed, options.skew), mesh)
    arguments = (x_AD, routing, *weights(config.text, dtype, options.seed, quantize, mesh))
    compiled = {name: jax.jit(over_mesh(BACKENDS[name], mesh)).lower(*arguments).compile() for name in wanted}
    check(compiled, arguments, AGREE[options.dtype])
    candidates = {name: (lambda run=run: run(*arguments)) for name, run in compiled.items()}
    samples = interleaved({**peak_candidates(dtype), **candidates}, options.repeats)
    peak = peaks(samples, mesh)
    work = roofline.experts(config.text, options.tokens, dtype.itemsize, quantize)
    figures = [figure(name, samples[name], work, peak) for name in wanted]
    more: dict[str, Any] = {"temporaries MB": {name: temporaries(one) for name, one in compiled.items()}}
    more[BUSIEST] = busiest([routing], config.text)[0]
    if SLOWEST in wanted and own != SLOWEST:
        more[f"{own}, times as fast as {SLOWEST}"] = ratio(samples[SLOWEST], samples[own])
    return shown(report("moe", bench_model.settings_of(options, config, choice), figures, peak, **more), options.json)


def at_home(config: TextConfig, quantize: str | None) -> list[str]:
    """The backends, without those that cannot run here as themselves."""
    device = jax.default_backend()
    runs = {
        # Elsewhere these are interpreted; quantised weights `gmm` leaves to buckets.
        "grouped_blocks": device == "gpu" and supports(config.moe_intermediate_size, config.hidden_size),
        "gmm": device == "tpu" and quantize is None,
        "ragged_dot": quantize is None,
    }
    return [name for name in BACKENDS if runs.get(name, True)]


def inputs(config: TextConfig, tokens: int, dtype: jnp.dtype, seed: int, skew: float) -> tuple[jax.Array, Routing]:
    """Random hidden states, and a random routing of so much skew."""
    keys, E = jax.random.split(jax.random.key(seed)), config.num_experts
    loud_E = jnp.ones(E).at[0].set(loudness(config, skew))
    probability_AE = jax.nn.softmax(jax.random.normal(keys[0], (tokens, E)) * loud_E[None], axis=-1)
    weight_AX, expert_AX = jax.lax.top_k(probability_AE, config.top_k_experts)
    routing = Routing(expert_AX, weight_AX / jnp.sum(weight_AX, axis=-1, keepdims=True), probability_AE)
    return jax.random.normal(keys[1], (tokens, config.hidden_size)).astype(dtype), routing


def weights(config: TextConfig, dtype: jnp.dtype, seed: int, quantize: str | None, mesh: Mesh | None) -> tuple:
    """Random experts of one layer, on their devices: `gate_up_EFD` and `down_EDF`."""
    state = nnx.state(nnx.eval_shape(lambda: Experts(config, nnx.Rngs(0), dtype, SLOWEST)))
    made = filled(state, seed, quantize=quantize, mesh=mesh, inside=("text", "layers", 0, "experts"))
    return made["gate_up_EFD"][...], made["down_EDF"][...]


def check(compiled: dict[str, jax.stages.Compiled], arguments: tuple, within: float) -> None:
    """Raises ValueError where two backends give different outputs."""
    outputs = {name: np.asarray(run(*arguments), np.float32) for name, run in compiled.items()}
    first, *others = outputs
    for other in others:
        difference = float(np.abs(outputs[first] - outputs[other]).max())
        if not difference <= within:
            raise ValueError(f"{first} and {other} differ by {difference:.2g}, wanted at most {within}")
