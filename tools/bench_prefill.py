"""`bench prefill`: reading prompts, and the commit of a canvas behind each, as generation does both."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

import dgemma_jax
from dgemma_jax.cache import Cache
from dgemma_jax.sharding import place
from tools import bench_model, roofline
from tools.bench_report import printing, report, shown
from tools.bench_timing import figure, interleaved, peak_candidates, peaks


def add_command(commands: Any) -> None:
    """Declares the command."""
    parser = commands.add_parser("prefill", help="reading prompts, and a commit", description=__doc__)
    bench_model.add_options(parser)
    bench_model.add_layers(parser)
    bench_model.add_prompts(parser)
    parser.set_defaults(run=printing(measure))


def measure(options: argparse.Namespace) -> str:
    """Measures and reports."""
    model = bench_model.model_of(options)
    config, choice = model.config, bench_model.choice_in(model)
    tokens = bench_model.tokens_of(options, config, options.context)
    canvas = bench_model.tokens_of(options, config, config.canvas_length)
    candidates = {
        **peak_candidates(model.dtype),
        "prefill": lambda: model.prefill(tokens),
        "commit": committing(model, model.prefill(tokens), canvas),
    }
    samples = interleaved(candidates, options.repeats)
    peak = peaks(samples, model.mesh)
    width = (model.dtype.itemsize, options.rows, choice.quantize)
    works = {
        "prefill": roofline.reading(config.text, options.context, 0, *width),
        "commit": roofline.reading(config.text, config.canvas_length, options.context, *width),
    }
    figures = [figure(name, samples[name], work, peak) for name, work in works.items()]
    speed = {"tokens per second": tokens.size / samples["prefill"].median}
    settings = bench_model.settings_of(options, config, choice)
    return shown(report("prefill", settings, figures, peak, **speed), options.json)


def committing(model: dgemma_jax.Model, cache: Cache, canvas_BL: np.ndarray) -> Callable[[], Cache]:
    """The commit of a canvas, again and again at one place of one cache, which it writes and so uses up.

    Where a ring has wrapped the canvas of the last time lies in place of old tokens, which costs the same to read.
    """
    canvas, ended = place((jnp.asarray(canvas_BL, jnp.int32), jnp.zeros(len(canvas_BL), bool)), model.mesh)
    needed, held = int(cache.length_B[0]) + canvas_BL.shape[1], [cache]

    def again() -> Cache:
        made = model.append(held[0], canvas, needed, ended)
        held[0] = dataclasses.replace(made, length_B=made.length_B - canvas_BL.shape[1])
        return held[0]

    return again
