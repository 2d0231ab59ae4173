"""`bench head`: the vocabulary pass of one denoising step, materialised and streaming in turn, once they agree."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dgemma_jax.config import FULL
from dgemma_jax.model.text import TextModel
from dgemma_jax.sampling.head import Prediction
from dgemma_jax.sampling.heads import HEADS
from tools import bench_model, roofline
from tools.bench_report import printing, report, shown
from tools.bench_step import ratio
from tools.bench_timing import figure, interleaved, peak_candidates, peaks, temporaries

AGREE = {"float32": 1e-4, "bfloat16": 0.05}
"""Largest difference of entropies (nats) between the passes."""


def add_command(commands: Any) -> None:
    """Declares the command."""
    parser = commands.add_parser("head", help="the vocabulary pass", description=__doc__)
    bench_model.add_options(parser)
    bench_model.add_rows(parser)
    parser.set_defaults(run=printing(measure))


def measure(options: argparse.Namespace) -> str:
    """Measures and reports. Raises ValueError where the passes do not agree."""
    config, dtype = bench_model.config_of(options), jnp.dtype(options.dtype)
    small = dataclasses.replace(config.text, layer_types=(FULL,), num_experts=1, top_k_experts=1)
    graphdef, state = nnx.split(TextModel(small, nnx.Rngs(options.seed), dtype, "all_experts", "materialised"))
    rng = np.random.default_rng(options.seed)
    x_BLD = jnp.asarray(rng.standard_normal((options.rows, config.canvas_length, small.hidden_size)), dtype)
    uniform_BL = jnp.asarray(rng.random(x_BLD.shape[:2]), jnp.float32)
    arguments = (state, x_BLD, jnp.full(options.rows, 0.8), uniform_BL)

    def program(name: str) -> jax.stages.Compiled:
        def predict(state: nnx.State, x_BLD: jax.Array, heat_B: jax.Array, uniform_BL: jax.Array) -> Prediction:
            return HEADS[name](nnx.merge(graphdef, state), x_BLD, heat_B, uniform_BL, None, None)

        return jax.jit(predict).lower(*arguments).compile()

    compiled = {name: program(name) for name in HEADS}
    differ = check({name: one(*arguments) for name, one in compiled.items()}, AGREE[options.dtype])
    candidates = {name: (lambda run=run: run(*arguments)) for name, run in compiled.items()}
    samples = interleaved({**peak_candidates(dtype), **candidates}, options.repeats)
    peak = peaks(samples)
    work = roofline.head(config.text, options.rows * config.canvas_length, dtype.itemsize)
    figures = [figure(name, samples[name], work, peak) for name in compiled]
    more = {
        "entropies differ by at most": differ,
        "temporaries MB": {name: temporaries(one) for name, one in compiled.items()},
        "streaming, times as fast as materialised": ratio(samples["materialised"], samples["streaming"]),
    }
    settings = bench_model.settings_of(options, config, bench_model.choice_of(options, config))
    return shown(report("head", settings, figures, peak, **more), options.json)


def check(found: dict[str, Prediction], within: float) -> float:
    """The largest difference of entropies. Raises ValueError where it is too large."""
    plain, streamed = found["materialised"], found["streaming"]
    differ = float(jnp.max(jnp.abs(plain.entropy_BL - streamed.entropy_BL)))
    if not differ <= within:
        raise ValueError(f"the passes' entropies differ by {differ:.2g} nats, wanted at most {within}")
    return differ
