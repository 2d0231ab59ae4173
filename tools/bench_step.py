"""`bench step`: one denoising step of one canvas or several, alone or against transformers on the same weights."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import dgemma_jax
from dgemma_jax import compiled
from dgemma_jax.cache import Cache
from dgemma_jax.config import TextConfig
from dgemma_jax.model.attention import FILLED_BLOCKS, block_of_keys
from dgemma_jax.model.moe_blocks import BLOCK_ROWS
from dgemma_jax.model.router import Routing
from dgemma_jax.model.text import TextOutput
from dgemma_jax.sampling import denoise
from dgemma_jax.sampling.draws import KeyedDraws, row_keys
from dgemma_jax.sampling.settings import Settings
from dgemma_jax.sharding import place
from tools import bench_model, roofline
from tools.bench_report import printing, report, shown
from tools.bench_timing import Sample, figure, interleaved, peak_candidates, peaks, temporaries
from tools.module_cost import matrix_flops

OURS, THEIRS = "denoising step", "transformers"
BUSIEST = "busiest expert, times the mean"
AGREE = 1e-3
"""Largest difference of logits, which reach 30, that two float32 implementations may have at this size."""


def add_command(commands: Any) -> None:
    """Declares the command."""
    parser = commands.add_parser("step", help="a denoising step", description=__doc__)
    bench_model.add_options(parser)
    bench_model.add_layers(parser)
    bench_model.add_prompts(parser)
    parser.add_argument(
        "--against", choices=("transformers",), help="run it too, in turn, once the logits agree; one canvas in float32"
    )
    parser.set_defaults(run=printing(measure))


def measure(options: argparse.Namespace) -> str:
    """Measures and reports. Raises ValueError for a comparison that would mean nothing."""
    if options.against and (options.dtype, options.rows, options.quantize) != ("float32", 1, None):
        raise ValueError(
            "--against compares one canvas in float32, where logits can be: no --dtype, --rows, --quantize"
        )
    model = bench_model.model_of(options)
    config, choice = model.config, bench_model.choice_in(model)
    tokens = bench_model.tokens_of(options, config, options.context)
    cache = model.prefill(tokens)
    step, arguments = prepared(model, cache)
    candidates: dict[str, Any] = {**peak_candidates(model.dtype), OURS: lambda: step(*arguments)}
    more: dict[str, Any] = {BUSIEST: spans(busiest(routings(model, cache, arguments[2]), config.text))}
    if options.against:
        from tools.bench_transformers import Peer

        peer = Peer(config, model.params, tokens)
        more["logits differ by at most"] = agreement(model, cache, peer, options.seed)
        more["experts of transformers"] = peer.experts
        candidates[THEIRS] = peer.step
    samples = interleaved(candidates, options.repeats)
    peak = peaks(samples, model.mesh)
    sizes = (config.canvas_length, options.context, model.dtype.itemsize, options.rows)
    work = roofline.step(config.text, *sizes, choice.quantize)
    figures = [figure(name, samples[name], work, peak) for name in (OURS, THEIRS) if name in samples]
    if THEIRS in samples:
        more["times as fast as transformers"] = ratio(samples[THEIRS], samples[OURS])
    more |= module(step, model, options.rows, options.context, work)
    settings = bench_model.settings_of(options, config, choice)
    return shown(report("step", settings, figures, peak, **more), options.json)


def prepared(model: dgemma_jax.Model, cache: Cache) -> tuple[jax.stages.Compiled, tuple]:
    """A step in the middle of a canvas of every row of the cache, compiled, and its arguments."""
    config, rows = model.config, len(cache.length_B)
    seed = jnp.stack([jnp.zeros(rows, jnp.uint32), jnp.arange(rows, dtype=jnp.uint32)], axis=1)
    draws = KeyedDraws(row_keys(seed, jnp.zeros(rows, jnp.int32)), config.canvas_length, config.text.vocab_size)
    settings = Settings.of(bench_model.endless(model.generation, 48), rows)
    start = denoise.start(nnx.merge(model.graphdef, model.params), draws, settings)
    if model.mesh is not None:  # a program takes its arguments where it was compiled to find them
        start, settings, draws = place((start, settings, draws), model.mesh)
        start = compiled.denoise_step(*model.flat, cache, start, settings, draws)
    step = compiled.denoise_step.lower(*model.flat, cache, start, settings, draws).compile()
    state = step(model.flat[1], cache, start, settings, draws)
    return step, (model.flat[1], cache, state, settings, draws)


def routings(model: dgemma_jax.Model, cache: Cache, state: denoise.State) -> tuple[Routing, ...]:
    """How every layer of the next step routes. Run layer by layer, so that each kind of layer is compiled once."""
    part = nnx.merge(model.graphdef, model.params)
    run, outputs = part.text.run, []

    def remember(*arguments: Any) -> TextOutput:
        outputs.append(run(*arguments))
        return outputs[0]

    part.text.run = remember
    part.denoise(cache, state.canvas_BL, state.soft_BLD)
    return outputs[0].routings


def busiest(routings: Sequence[Routing], config: TextConfig) -> list[float]:
    """Of each routing, the tokens of the busiest expert in parts of the mean."""
    loads = [np.bincount(np.ravel(routing.expert_AX), minlength=config.num_experts) for routing in routings]
    return [float(load.max() / load.mean()) for load in loads]


def spans(values: list[float]) -> dict[str, float]:
    """Of values by layer."""
    return {"first layer": values[0], "last": values[-1], "most": max(values)}


def agreement(model: dgemma_jax.Model, cache: Cache, peer: Any, seed: int) -> float:
    """The largest difference of logits on a first and on a conditioned step. Raises ValueError where it is large."""
    rng = np.random.default_rng(seed + 1)
    canvases = rng.integers(0, model.config.text.vocab_size, (2, 1, model.config.canvas_length))
    worst, previous = 0.0, None
    for canvas in canvases:
        theirs = peer.logits(canvas, previous)
        ours = np.asarray(model.denoise_logits(cache, canvas, previous))
        worst, previous = max(worst, float(np.abs(ours - theirs).max())), theirs
    if worst > AGREE:
        raise ValueError(f"the logits differ by {worst:.2g}, wanted at most {AGREE}: a time would mean nothing")
    return worst


def ratio(slow: Sample, fast: Sample) -> dict[str, float]:
    """How many times as fast, and in the worst and the best of the rounds."""
    rounds = [one / other for one, other in zip(slow.seconds, fast.seconds, strict=True)]
    return {"median": slow.median / fast.median, "worst": min(rounds), "best": max(rounds)}


def module(
    step: jax.stages.Compiled, model: dgemma_jax.Model, rows: int, context: int, work: roofline.Work
) -> dict[str, Any]:
    """What the compiled module says of itself, where its text can be counted."""
    found: dict[str, Any] = {"temporaries MB": temporaries(step)}
    text, canvas = model.config.text, model.config.canvas_length
    devices = 1 if model.mesh is None else model.mesh.size
    blocks = rows * canvas * text.top_k_experts // BLOCK_ROWS + text.num_experts  # at most
    # Rings of sliding layers are shorter than a block: only full layers loop.
    scopes = {FILLED_BLOCKS: -(-context // block_of_keys(canvas, text.num_attention_heads))}
    try:
        found["arithmetic, of the useful"] = matrix_flops(step.as_text() or "", blocks, scopes) * devices / work.flops
    except ValueError as error:
        found["arithmetic"] = str(error)
    return found
