"""Train: `python -m tools.train demo` makes the demo model from scratch, `eval` scores it."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from tools.paths import DEMO


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; 0, or 1 where a score falls short, or 2 for a problem with what was given."""
    options = parser().parse_args(arguments)
    try:
        return options.run(options)
    except ImportError as error:
        print(f"train: {error}; install the extra: pip install 'dgemma[train]'", file=sys.stderr)
        return 2
    except (ValueError, OSError) as error:
        print(f"train: {error}", file=sys.stderr)
        return 2


def positive(text: str) -> int:
    """An argparse type: a whole number from 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, found {text}")
    return value


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="python -m tools.train", description=__doc__)
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    demo = commands.add_parser("demo", help="train the demo model on text that this project generates")
    demo.add_argument("--out", type=Path, required=True, help="folder for the checkpoint and metrics.jsonl")
    demo.add_argument("--steps", type=positive, default=3400, help="batches (default %(default)s)")
    demo.add_argument("--seed", type=int, default=0, help="of weights, data and noise (default %(default)s)")
    demo.set_defaults(run=run_demo)
    score = commands.add_parser("eval", help="score a demo checkpoint; exit 1 if less than promised")
    score.add_argument("--checkpoint", type=Path, default=DEMO, help="folder (default: the shipped demo)")
    score.add_argument("--count", type=positive, default=200, help="questions of each family (default %(default)s)")
    score.add_argument("--family", action="append", metavar="NAME", help="only this family; may be repeated")
    score.add_argument("--steps", type=positive, help="denoising steps per canvas (default: as the checkpoint says)")
    score.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    score.set_defaults(run=run_eval)
    return top


def run_demo(options: argparse.Namespace) -> int:
    """Trains into a folder that holds no checkpoint yet; what it saves on the way can be served at once."""
    from dgemma_jax.training.demo.run import train_demo

    if (options.out / "config.json").exists():
        raise ValueError(f"{options.out} holds a checkpoint already; choose another --out")
    options.out.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (options.out / name).write_bytes((DEMO / name).read_bytes())
    train_demo(options.out, options.steps, options.seed)
    return 0


def run_eval(options: argparse.Namespace) -> int:
    """Prints a line for each family, and some wrong answers on stderr."""
    import dataclasses

    import dgemma_jax
    from dgemma_jax.prompt.template import ChatTemplate
    from dgemma_jax.training.demo.acceptance import PROMISED, score
    from dgemma_jax.training.demo.mix import FAMILIES, test_examples

    model, template = dgemma_jax.load(options.checkpoint), ChatTemplate.from_folder(options.checkpoint)
    if options.steps:
        generation = dataclasses.replace(model.generation, max_denoising_steps=options.steps)
        model = dataclasses.replace(model, generation=generation)
    if unknown := set(options.family or ()) - set(FAMILIES):
        raise ValueError(f"unknown family {', '.join(sorted(unknown))}; known are {', '.join(FAMILIES)}")
    results = {}
    for family in options.family or FAMILIES:
        result = score(model, template, test_examples(family, options.count, seed=1))
        results[family] = {"share": result.share, "count": result.count, "steps": result.steps, "early": result.early}
        if not options.json:
            share, steps = f"{result.share:6.3f} of {result.count}", f"{result.steps:5.2f} steps"
            print(f"{family:12} {share}  {steps}  {result.early:.2f} early", flush=True)
        for question, expected, found in result.wrong[:5]:
            print(f"  {question!r}: wanted {expected!r}, found {found!r}", file=sys.stderr)
    if options.json:
        print(json.dumps(results, indent=1))
    short = [family for family, least in PROMISED.items() if family in results and results[family]["share"] < least]
    if short:
        print(f"train: less than promised: {', '.join(short)}", file=sys.stderr)
    return int(bool(short))


if __name__ == "__main__":
    sys.exit(main())
