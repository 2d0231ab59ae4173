"""`bench prefill`: reading a prompt, and the commit of a canvas behind it."""

from __future__ import annotations

import argparse
from typing import Any

import jax

from tools import bench_model, roofline
from tools.bench_report import printing, report, shown
from tools.bench_timing import figure, interleaved, peak_candidates, peaks


def add_command(commands: Any) -> None:
    """Declares the command."""
    parser = commands.add_parser("prefill", help="reading a prompt, and a commit", description=__doc__)
    bench_model.add_options(parser)
    parser.set_defaults(run=printing(measure))


def measure(options: argparse.Namespace) -> str:
    """Measures and reports."""
    model = bench_model.model_of(options)
    config, width = model.config, model.dtype.itemsize
    tokens = bench_model.tokens_of(options, config, options.context)
    canvas = bench_model.tokens_of(options, config, config.canvas_length)
    cache = model.prefill(tokens)
    candidates = {
        **peak_candidates(model.dtype),
        "prefill": lambda: jax.block_until_ready(model.prefill(tokens)),
        "commit": lambda: jax.block_until_ready(model.commit(cache, canvas)),
    }
    samples = interleaved(candidates, options.repeats)
    peak = peaks(samples, model.mesh)
    works = {
        "prefill": roofline.layers(config.text, options.context, 0, width),
        "commit": roofline.layers(config.text, config.canvas_length, options.context, width),
    }
    figures = [figure(name, samples[name], work, peak) for name, work in works.items()]
    speed = {"tokens per second": options.context / samples["prefill"].median}
    return shown(report("prefill", bench_model.settings_of(options, config), figures, peak, **speed), options.json)
