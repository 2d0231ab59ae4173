"""`bench quality`: what quantised weights cost, on the demo's acceptance questions: answers right, and logits moved.

Every kind of weights answers the same questions with the same seeds. Logits are of the first step over each right
answer, half of it replaced by other tokens, and are compared with those of full weights in float32.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import dgemma_jax
from dgemma_jax.checkpoint.quantize import Kind
from dgemma_jax.prompt.template import ChatTemplate
from dgemma_jax.training.demo.acceptance import SKILLS, score, skill_examples
from dgemma_jax.training.demo.render import demo_row
from dgemma_jax.training.rows import Row
from tools.bench_report import machine, printing
from tools.options import positive
from tools.paths import DEMO
from tools.train_eval import SEED

KINDS: tuple[Kind | None, ...] = (None, "int8", "int4")
FULL = "full"


def add_command(commands: Any) -> None:
    """Declares the command."""
    parser = commands.add_parser("quality", help="quantised weights against full ones", description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=DEMO, metavar="DIR", help="default: the shipped demo")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="default %(default)s")
    parser.add_argument("--count", type=positive, default=20, help="questions of each skill (default %(default)s)")
    parser.add_argument("--skill", action="append", choices=SKILLS, metavar="NAME", help="only this one; repeatable")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=printing(measure))


def measure(options: argparse.Namespace) -> str:
    """Measures and reports. Raises ValueError for a checkpoint without a tokenizer."""
    template = ChatTemplate.from_folder(options.checkpoint)
    drawn = {name: skill_examples(SKILLS[name], options.count, SEED) for name in options.skill or SKILLS}
    exact = dgemma_jax.load(options.checkpoint, "float32")
    if exact.tokenizer is None:
        raise ValueError(f"{options.checkpoint} holds no tokenizer; questions need one")
    every = [demo_row(one, exact.tokenizer, template, exact.config) for examples in drawn.values() for one in examples]
    rows = [row for row in every if not row.images]
    wanted = logits(exact, rows)
    figures = []
    for kind in KINDS:
        model = dgemma_jax.load(options.checkpoint, options.dtype, quantize=kind)
        shares = {}
        for name, examples in drawn.items():
            shares[name] = score(model, template, examples).share
            print(f"{kind or FULL}: {name} {shares[name]:.3f}", file=sys.stderr, flush=True)
        figures.append({"name": kind or FULL, **errors(logits(model, rows), wanted), "shares": shares})
    settings = {"model": str(options.checkpoint), "dtype": options.dtype, "questions of a skill": options.count}
    found = {"benchmark": "quality", "machine": machine(), "settings": settings, "figures": figures}
    return json.dumps(found, indent=1) if options.json else _table(found)


def logits(model: dgemma_jax.Model, rows: Sequence[Row]) -> list[np.ndarray]:
    """Of each row, float32 [answer, vocabulary]: the first step over its first canvas, half of it noise."""
    length, vocabulary = model.config.canvas_length, model.config.text.vocab_size
    found = []
    for number, row in enumerate(rows):
        rng = np.random.default_rng(number)
        canvas = rng.integers(vocabulary, size=length)
        answer = row.answer[:length]
        keep = rng.random(len(answer)) < 0.5
        canvas[: len(answer)] = np.where(keep, answer, canvas[: len(answer)])
        made = model.denoise_logits(model.prefill(np.asarray([row.prompt])), canvas[None])
        found.append(np.asarray(made[0, : len(answer)], np.float32))
    return found


def errors(found: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> dict[str, float]:
    """Median error of a logit in parts of the logits' spread; share of positions that keep their likeliest token.

    In the median: where another expert is chosen, a whole row of logits moves.
    """
    if not wanted:
        return {}
    one, other = np.concatenate(found), np.concatenate(wanted)
    return {
        "logit_error": float(np.median(np.abs(one - other)) / other.std()),
        "same_likeliest": float(np.mean(one.argmax(axis=-1) == other.argmax(axis=-1))),
    }


def _table(found: dict[str, Any]) -> str:
    figures = found["figures"]
    lines = ["quality: " + ", ".join(f"{key} {value}" for key, value in found["settings"].items()), ""]
    lines += [f"{'':24}" + "".join(f"{figure['name']:>10}" for figure in figures)]
    for key in ("logit_error", "same_likeliest"):
        if key in figures[0]:
            lines += [f"{key.replace('_', ' '):24}" + "".join(f"{figure[key]:10.4f}" for figure in figures)]
    for name in figures[0]["shares"]:
        lines += [f"{name:24}" + "".join(f"{figure['shares'][name]:10.3f}" for figure in figures)]
    means = [np.mean(list(figure["shares"].values())) for figure in figures]
    return "\n".join([*lines, f"{'all skills':24}" + "".join(f"{mean:10.3f}" for mean in means)])
