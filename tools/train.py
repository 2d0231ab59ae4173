"""Train: `demo` makes the demo model from scratch, `sft` fine-tunes a checkpoint, `eval` scores, `export` publishes."""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import sys
from pathlib import Path

from dgemma_jax.training.host_memory import keep_freed_memory
from tools import train_eval, train_export, train_sft
from tools.options import count, positive, rate, seed
from tools.paths import DEMO


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; 0, or 1 where a score falls short, or 2 for a problem with what was given."""
    options = parser().parse_args(arguments)
    keep_freed_memory()
    try:
        return options.run(options)
    except ImportError as error:
        print(f"train: {error}; install the extra, in the clone: pip install -e '.[train]'", file=sys.stderr)
        return 2
    except (ValueError, OSError) as error:
        print(f"train: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("train: stopped; a run goes on from its last save when the same command is given again", file=sys.stderr)
        return 130


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="python -m tools.train", description=__doc__)
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    _add_demo(commands)
    for part in (train_sft, train_eval, train_export):
        part.add_command(commands)
    return top


def _add_demo(commands: argparse._SubParsersAction) -> None:
    demo = commands.add_parser("demo", help="train the demo model on conversations that this project generates")
    demo.add_argument("--out", type=Path, required=True, help="folder of the run; one that was stopped goes on")
    demo.add_argument("--steps", type=positive, default=12000, help="batches (default %(default)s)")
    demo.add_argument("--seed", type=seed, default=0, help="of weights, data and noise (default %(default)s)")
    demo.add_argument("--initial", type=Path, help="demo checkpoint to begin with, in place of random weights")
    demo.add_argument("--learning-rate", type=rate, default=8e-3, help="at its peak (default %(default)s)")
    demo.add_argument(
        "--sight", type=count, help="batches that the vision tower alone begins with (default 1200; 0 with --initial)"
    )
    demo.add_argument("--scale", type=positive, default=1, help="times as many rows in a batch; for a GPU, 6")
    demo.add_argument("--processes", type=count, default=0, help="making rows beside this one; for a GPU, one a core")
    demo.add_argument(
        "--questions", type=count, default=200, help="of each skill, asked at the end (default %(default)s; 0: none)"
    )
    demo.set_defaults(run=run_demo)


def run_demo(options: argparse.Namespace) -> int:
    """Trains into a folder of its own; what it saves on the way can be served at once. 1 if it learned too little."""
    import dgemma_jax
    from dgemma_jax.training import demo
    from dgemma_jax.training.demo.run import DemoRun, DemoSettings
    from dgemma_jax.training.demo.tokenizer import write_tokenizer
    from dgemma_jax.training.run_folder import copy_companions, fingerprint, remember, require_same, source_hash

    initial = None if options.initial is None else options.initial.absolute()
    sight = options.sight if options.sight is not None else 1200 if initial is None else 0
    wanted = DemoSettings(
        steps=options.steps, seed=options.seed, scale=options.scale, learning_rate=options.learning_rate, sight=sight
    )
    settings = {"kind": "demo", **dataclasses.asdict(wanted), "generators": source_hash(Path(demo.__file__).parent)}
    if initial is not None:
        settings["initial"] = fingerprint(initial)
    require_same(options.out, settings)
    options.out.mkdir(parents=True, exist_ok=True)
    if initial is not None:
        copy_companions(initial, options.out)
    if not (options.out / "tokenizer.json").exists():
        print("train: learning the tokenizer", file=sys.stderr)
        write_tokenizer(options.out)
    if not (options.out / "chat_template.jinja").exists():
        shutil.copyfile(DEMO / "chat_template.jinja", options.out / "chat_template.jinja")
    remember(options.out, settings)
    run = DemoRun(options.out, wanted, initial, options.processes)
    run.train()
    print(json.dumps({"out": str(options.out), "steps": options.steps, "seconds": round(run.seconds)}))
    if not options.questions:
        return 0
    _, kept = train_eval.score_skills(
        train_eval.scorer(dgemma_jax.load(options.out), options.out), count=options.questions
    )
    return int(not kept)


if __name__ == "__main__":
    sys.exit(main())
