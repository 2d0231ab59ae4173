"""`python -m tools.train eval`: how often a checkpoint answers right, on the demo's skills or on a data file."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tools.options import positive, share
from tools.paths import DEMO

if TYPE_CHECKING:
    import dgemma_jax
    from dgemma_jax.training.demo.acceptance import Score
    from dgemma_jax.training.demo.example import Example

Scorer = Callable[[Sequence["Example"]], "Score"]

WRONG_SHOWN = 5
COUNT, SEED = 200, 7
"""Questions of each demo skill, and which: those of the model card."""


def add_command(commands: argparse._SubParsersAction) -> None:
    """Declares the command."""
    score = commands.add_parser("eval", help="score a checkpoint; exit 1 if less than promised")
    score.add_argument("--checkpoint", type=Path, default=DEMO, help="folder (default: the shipped demo)")
    score.add_argument("--server", metavar="URL", help="ask the demo's skills of a running server, as http://host:8000")
    score.add_argument("--lora", type=Path, help="folder of an adapter to add")
    score.add_argument("--quantize", choices=("int8", "int4"), help="weights of 8 or 4 bits (default: as they are)")
    score.add_argument("--data", type=Path, help="JSONL file of chats to answer (default: the demo's skills)")
    score.add_argument("--count", type=positive, help="questions of each skill (default 200), or first rows of --data")
    score.add_argument("--seed", type=int, default=SEED, help="which questions of the skills (default %(default)s)")
    score.add_argument("--skill", action="append", metavar="NAME", help="only this demo skill; may be repeated")
    score.add_argument("--least", type=share, help="share of right answers that is enough (default: as promised, or 0)")
    score.add_argument("--steps", type=positive, help="denoising steps per canvas (default: as the checkpoint says)")
    score.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    score.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Prints the scores, and some wrong answers on stderr."""
    if options.server is not None and (options.data or options.lora or options.quantize or options.steps):
        raise ValueError("--server is asked as it runs: --data, --lora, --quantize and --steps do not go with it")
    return _run_data(options) if options.data is not None else _run_skills(options)


def _load(options: argparse.Namespace) -> dgemma_jax.Model:
    import dgemma_jax

    model = dgemma_jax.load(options.checkpoint, lora=options.lora, quantize=options.quantize)
    if options.steps:
        generation = dataclasses.replace(model.generation, max_denoising_steps=options.steps)
        model = dataclasses.replace(model, generation=generation)
    return model


def _run_data(options: argparse.Namespace) -> int:
    from dgemma_jax.training.dataset import ChatFormat, Dataset
    from dgemma_jax.training.scoring import answers

    if options.skill:
        raise ValueError("--skill is of the demo's own questions; with --data give only --count")
    chat = ChatFormat.from_folder(options.checkpoint)
    data = Dataset.read(options.data, chat, chat.config.text.max_position_embeddings)
    found = answers(_load(options), data, options.count)
    steps = [taken for answer in found for taken in answer.steps]
    result = {
        "share": sum(answer.right for answer in found) / len(found),
        "count": len(found),
        "steps": sum(steps) / len(steps),
    }
    for answer in [answer for answer in found if not answer.right][:WRONG_SHOWN]:
        print(f"  line {answer.line}: wanted {answer.wanted!r}, found {answer.found!r}", file=sys.stderr)
    _print("data", result, options.json)
    if options.json:
        print(json.dumps(result, indent=1))
    return int(result["share"] < (options.least or 0.0))


def _run_skills(options: argparse.Namespace) -> int:
    from dgemma_jax.training.demo.acceptance import SKILLS

    if unknown := set(options.skill or ()) - set(SKILLS):
        raise ValueError(f"unknown skill {', '.join(sorted(unknown))}; known are {', '.join(SKILLS)}")
    score = _scorer_of_server(options.server) if options.server else scorer(_load(options), options.checkpoint)
    results, kept = score_skills(
        score, options.skill, options.count or COUNT, options.seed, options.least, options.json
    )
    if options.json:
        print(json.dumps(results, indent=1))
    return int(not kept)


def _scorer_of_server(url: str) -> Scorer:
    from tools.train_eval_server import score

    return lambda examples: score(url, examples)


def scorer(model: dgemma_jax.Model, folder: Path) -> Scorer:
    """Scores the model; `folder` has its chat template."""
    from dgemma_jax.prompt.template import ChatTemplate
    from dgemma_jax.training.demo.acceptance import score

    template = ChatTemplate.from_folder(folder)
    return lambda examples: score(model, template, examples)


def score_skills(
    score: Scorer,
    names: Sequence[str] | None = None,
    count: int = COUNT,
    seed: int = SEED,
    least: float | None = None,
    as_json: bool = False,
) -> tuple[dict[str, dict[str, float]], bool]:
    """What `score` makes of some of the demo's skills (None: of all), and whether each is what is promised.

    Prints a line for each, unless `as_json`; some wrong answers and all that is too little on stderr.
    """
    from dgemma_jax.training.demo.acceptance import SKILLS, shortfalls, skill_examples

    results, short = {}, []
    for name in names or SKILLS:
        scored = score(skill_examples(SKILLS[name], count, seed))
        results[name] = {"share": scored.share, "count": scored.count, "formed": scored.formed / scored.count}
        results[name] |= {"thought": scored.thoughts / scored.count, "steps": scored.steps}
        results[name] |= {} if scored.early is None else {"early": scored.early}
        _print(name, results[name], as_json)
        for question, expected, found in scored.wrong[:WRONG_SHOWN]:
            print(f"  {question!r}: wanted {expected!r}, found {found!r}", file=sys.stderr)
        short += [f"{name}: {shortfall}" for shortfall in shortfalls(SKILLS[name], scored, least)]
    if short:
        print("train: less than promised:", *short, sep="\n  ", file=sys.stderr)
    return results, not short


def _print(name: str, result: dict[str, float], as_json: bool) -> None:
    """A line of the table."""
    if not as_json:
        rest = "".join(f"  {key} {value:.2f}" for key, value in result.items() if key not in ("share", "count"))
        print(f"{name:16} {result['share']:6.3f} of {result['count']}{rest}", flush=True)
