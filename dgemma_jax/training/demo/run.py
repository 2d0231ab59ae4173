"""Training the demo model from scratch, and writing it as a checkpoint."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
from tqdm import tqdm

from dgemma_jax.checkpoint.export import export
from dgemma_jax.prompt.template import ChatTemplate
from dgemma_jax.prompt.tokenizer import Tokenizer
from dgemma_jax.training.demo.architecture import demo_config, demo_generation
from dgemma_jax.training.demo.mix import examples
from dgemma_jax.training.objective import Batch, Metrics, Objective
from dgemma_jax.training.optimizer import OptimizerConfig
from dgemma_jax.training.rows import Bucket, Row, batches, render
from dgemma_jax.training.trainer import Trainer

BUCKETS = (Bucket(56, 1, 40), Bucket(88, 1, 24), Bucket(144, 3, 16))
COPIES = 2
LOG_EVERY = 20
SAVE_EVERY = 200


def train_demo(out: Path, steps: int, seed: int) -> None:
    """Trains for `steps` batches in the folder `out`, which holds the tokenizer and the chat template.

    Progress is shown on stderr and logged to `metrics.jsonl`; the averaged weights are written every `SAVE_EVERY`
    steps and at the end.
    """
    tokenizer, template = Tokenizer.from_folder(out), ChatTemplate.from_folder(out)
    config, generation = demo_config(tokenizer), demo_generation(tokenizer)
    trainer = Trainer(config, OptimizerConfig(steps=steps), seed)

    def save() -> None:
        export(out, config, generation, trainer.averaged(), jnp.dtype("bfloat16"))

    started, seen = time.monotonic(), 0
    stream = batches(_rows(tokenizer, template, seed), BUCKETS, config.canvas_length, tokenizer.token_id("<eos>"))
    with (out / "metrics.jsonl").open("w") as log, tqdm(total=steps, unit="step") as progress:
        for step, (bucket, batch) in zip(range(1, steps + 1), stream, strict=False):
            metrics = trainer.step(batch, _objective(bucket))
            seen += int(batch.tokens_BS.shape[0])
            progress.update()
            if step % LOG_EVERY == 0 or step == steps:
                row = _log_row(step, seen, time.monotonic() - started, metrics, batch)
                progress.set_postfix(denoising=row["denoising"], accuracy=row["accuracy"])
                log.write(json.dumps(row) + "\n")
                log.flush()
            if step % SAVE_EVERY == 0:
                save()
    save()


def _rows(tokenizer: Tokenizer, template: ChatTemplate, seed: int) -> Iterator[Row]:
    for example in examples("train", seed):
        yield render(example.messages, example.thinking, tokenizer, template)


def _objective(bucket: Bucket) -> Objective:
    return Objective(blocks=bucket.blocks, copies=COPIES, fill_weight=0.3, balance_weight=0.003)


def _log_row(step: int, seen: int, seconds: float, metrics: Metrics, batch: Batch) -> dict[str, float]:
    values = {name: round(float(value), 4) for name, value in jax.device_get(metrics)._asdict().items()}
    return {"step": step, "examples": seen, "seconds": round(seconds, 1), "length": batch.tokens_BS.shape[1], **values}
