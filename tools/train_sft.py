"""`python -m tools.train sft`: its flags, and the run they describe."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from tools.options import names, positive, seed
from tools.paths import DEMO

if TYPE_CHECKING:
    from dgemma_jax.training.sft import SftConfig


def add_command(commands: argparse._SubParsersAction) -> None:
    """Declares the command."""
    sft = commands.add_parser(
        "sft",
        help="fine-tune a checkpoint on a JSONL file of chats",
        description="Fine-tunes a checkpoint on a JSONL file of chats. Given again, the same command goes on where it "
        "stopped. See docs/fine-tuning.md.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    sft.add_argument("--model", type=Path, default=DEMO, help="folder of the checkpoint to start from")
    sft.add_argument("--data", type=Path, required=True, help="JSONL file of chats")
    sft.add_argument("--eval-data", type=Path, help="JSONL file of chats to measure the loss on, at every save")
    sft.add_argument("--out", type=Path, required=True, help="folder of the run: state, metrics, and what it makes")
    _add_method(sft)
    _add_optimizer(sft)
    _add_objective(sft)
    sft.add_argument("--save-every", type=positive, default=200, help="updates between saves")
    sft.add_argument("--keep", type=positive, default=2, help="saved states to keep")
    sft.add_argument("--log-every", type=positive, default=10, help="updates between lines of metrics.jsonl")
    sft.add_argument("--json", action="store_true", help="print the last metrics as one JSON object")
    sft.set_defaults(run=run)


def _add_method(sft: argparse.ArgumentParser) -> None:
    group = sft.add_argument_group("what is trained")
    group.add_argument("--method", choices=("lora", "full"), default="lora", help="an adapter, or the model itself")
    group.add_argument("--lora-rank", type=positive, default=16, help="columns of an adapter's matrices")
    group.add_argument("--lora-alpha", type=float, default=32.0, help="the adapter counts alpha / rank")
    targets = "of attention, mlp, experts, router, self_conditioning"
    group.add_argument("--lora-targets", type=names, default="attention,mlp", help=targets)
    parts = "parts that --method full leaves: of router, vision, attention, mlp, experts, embedding, norms, ..."
    group.add_argument("--freeze", type=names, default="router", help=parts)
    group.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of the arithmetic")


def _add_optimizer(sft: argparse.ArgumentParser) -> None:
    group = sft.add_argument_group("how")
    group.add_argument("--optimizer", choices=("adamw", "adafactor", "muon"), default="adamw", help="update rule")
    group.add_argument("--steps", type=positive, default=800, help="updates")
    group.add_argument("--batch", type=positive, default=8, help="rows in a batch; even")
    group.add_argument("--accum", type=positive, default=1, help="batches whose mean gradient makes an update")
    group.add_argument("--lr", type=float, default=1.5e-4, help="highest learning rate")
    group.add_argument("--warmup", type=int, default=25, help="updates until the learning rate is highest")
    group.add_argument("--weight-decay", type=float, default=1e-4, help="of matrices")
    group.add_argument("--clip", type=float, default=1.0, help="largest norm of the gradient")
    group.add_argument("--ema", type=float, default=0.0, help="decay of the average of the weights that is kept")
    group.add_argument("--seed", type=seed, default=0, help="of order, noise and the adapter's start")
    group.add_argument("--mesh", help="devices to spread over, as data=2,expert=4; None is one device")
    group.add_argument("--remat", action="store_true", help="compute layers twice instead of keeping what is in them")


def _add_objective(sft: argparse.ArgumentParser) -> None:
    group = sft.add_argument_group("what for")
    group.add_argument("--max-length", type=positive, default=1024, help="tokens of the longest row; more is refused")
    group.add_argument("--noise-copies", type=positive, default=1, help="noisy copies of each canvas in a batch")
    group.add_argument("--t-min", type=float, default=1e-3, help="least share of noise")
    group.add_argument("--ar-weight", type=float, default=1.0, help="of the next-token loss")
    group.add_argument("--prompt-weight", type=float, default=1.0, help="of the prompt within the next-token loss")
    group.add_argument("--fill-weight", type=float, default=1.0, help="of the fill behind an answer")


def run(options: argparse.Namespace) -> int:
    """Trains to the end; the last metrics are the result."""
    from dgemma_jax.training.sft import SftRun

    config = settings(options)
    last = SftRun(config).train()
    if options.json:
        print(json.dumps({"out": str(config.out), **last}))
    else:
        how = f"serve it with --lora {config.out}" if config.lora else f"serve it with --checkpoint {config.out}"
        print(f"{config.out}: {config.optimizer.steps} updates done, loss {last.get('loss', 'as logged')}; {how}")
    return 0


def settings(options: argparse.Namespace) -> SftConfig:
    """The run that the flags describe. Raises ValueError for what cannot be."""
    from dgemma_jax.training.lora import LoraConfig
    from dgemma_jax.training.optimizer import OptimizerConfig
    from dgemma_jax.training.sft import SftConfig

    optimizer = OptimizerConfig(
        name=options.optimizer,
        steps=options.steps,
        learning_rate=options.lr,
        warmup=options.warmup,
        weight_decay=options.weight_decay,
        clip=options.clip,
        accumulate=options.accum,
        average=options.ema,
    )
    adapter = LoraConfig(rank=options.lora_rank, alpha=options.lora_alpha, targets=options.lora_targets)
    same = ["model", "data", "eval_data", "out", "freeze", "batch", "max_length", "dtype", "seed", "t_min"]
    same += ["prompt_weight", "fill_weight", "remat", "mesh", "save_every", "keep", "log_every"]
    return SftConfig(
        optimizer=optimizer,
        lora=adapter if options.method == "lora" else None,
        copies=options.noise_copies,
        next_token_weight=options.ar_weight,
        **{name: getattr(options, name) for name in same},
    )
