"""Training the demo model from scratch, and writing it as a checkpoint."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from pathlib import Path

import jax.numpy as jnp
from flax import nnx
from tqdm import tqdm

from dgemma_jax.checkpoint.export import export
from dgemma_jax.checkpoint.load import load_parameters
from dgemma_jax.config import ModelConfig
from dgemma_jax.model.diffusion_gemma import DiffusionGemma
from dgemma_jax.processor_json import write_processor_config
from dgemma_jax.prompt.tokenizer import Tokenizer
from dgemma_jax.training.checkpoints import RunCheckpoints
from dgemma_jax.training.demo.architecture import DEMO_PROCESSOR, demo_config, demo_generation
from dgemma_jax.training.demo.render import TrainingRows
from dgemma_jax.training.demo.rows_ahead import RowsAhead
from dgemma_jax.training.demo.sight import learn_to_see
from dgemma_jax.training.interval import Interval
from dgemma_jax.training.objective import Objective
from dgemma_jax.training.optimizer import OptimizerConfig
from dgemma_jax.training.rows import BatchStream, Bucket
from dgemma_jax.training.run_folder import METRICS_FILE, forget_after
from dgemma_jax.training.trainer import Trainer

BUCKETS = (
    Bucket(56, 1, 40),
    Bucket(72, 1, 36),
    Bucket(104, 2, 20),
    Bucket(120, 1, 26),
    Bucket(176, 1, 20),
    Bucket(208, 1, 18),
    Bucket(144, 3, 14),
    Bucket(240, 2, 14),
    Bucket(240, 5, 8),
    Bucket(304, 7, 6),
    Bucket(304, 2, 12),
    Bucket(512, 4, 8),
    Bucket(80, 1, 32, images=1),
    Bucket(96, 1, 26, images=1),
    Bucket(144, 1, 16, images=1),
    Bucket(184, 1, 12, images=1),
    Bucket(384, 3, 6, images=1),
    Bucket(120, 1, 20, images=2),
    Bucket(176, 1, 14, images=4),
)
"""About as many tokens, clean and noisy, in a batch of each shape."""
COPIES, OWN, SHIFTED, MISTAKEN = 2, 0.6, 0.3, 0.5
LOG_EVERY = 20
SAVE_SECONDS = 120.0
"""Between two saves. What is learned does not depend on when a run was saved."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DemoSettings:
    """What decides the weights. `scale`: how many times the rows of `BUCKETS` a batch has, for devices with room.

    `learning_rate`: at its peak. A run that goes on from a trained checkpoint wants less.
    """

    steps: int
    seed: int = 0
    scale: int = 1
    learning_rate: float = 8e-3
    sight: int = 0


def demo_optimizer(settings: DemoSettings) -> OptimizerConfig:
    """Muon, falling straight to zero from its peak, and the average of the weights that is shipped.

    Most is learned while the rate falls: a run that holds it first learns less in the same time.
    """
    return OptimizerConfig(
        steps=settings.steps,
        name="muon",
        learning_rate=settings.learning_rate,
        warmup=100,
        schedule="hold",
        final=0.0,
        cooldown=1.0,
        weight_decay=0.01,
        b1=0.9,
        b2=0.98,
        average=0.999,
        scalar_rate=0.4,
    )


def demo_model(config: ModelConfig, settings: DemoSettings, initial: Path | None = None) -> DiffusionGemma:
    """What a run begins with, in float32: random weights, or those in `initial`."""
    if initial is None:
        return DiffusionGemma(config, nnx.Rngs(settings.seed), jnp.dtype("float32"))
    return nnx.merge(*load_parameters(initial, config, jnp.dtype("float32"), "all_experts"))


def demo_trainer(model: DiffusionGemma, settings: DemoSettings) -> Trainer:
    """A model in float32, computing in bfloat16, as it is shipped and served."""
    graphdef, trained, frozen = nnx.split(model, _is_trained, ...)  # type: ignore[misc]
    return Trainer(graphdef, trained, frozen, demo_optimizer(settings), seed=settings.seed, dtype="bfloat16")


def _is_trained(path: tuple, _: object) -> bool:
    """All but what the architecture keeps as constants: the layers' scalars, the standardising of soft tokens."""
    return not str(path[-1]).endswith("_scalar_1") and not str(path[-1]).startswith("standard_")


class DemoRun:
    """One training run in a folder that holds tokenizer and chat template: it goes on where it stopped.

    `processes` make rows beside this one; none: this one makes them itself. The rows are the same.
    """

    def __init__(self, out: Path, settings: DemoSettings, initial: Path | None = None, processes: int = 0) -> None:
        self.out, self.steps, self._settings = out, settings.steps, settings
        self._tokenizer = tokenizer = Tokenizer.from_folder(out)
        self.config, self.generation = demo_config(tokenizer), demo_generation(tokenizer)
        self.checkpoints = RunCheckpoints(out / "training")
        self.seconds, self.examples, position = 0.0, 0, None
        self.trainer = demo_trainer(demo_model(self.config, settings, initial), settings)
        self._fresh = self.checkpoints.latest is None
        if not self._fresh:
            position, facts = self.checkpoints.restore(self.trainer)
            self.seconds, self.examples = facts["seconds"], facts["examples"]
        self._ending = contextlib.ExitStack()
        row_at = TrainingRows(out, settings.seed)
        first = 0 if position is None else position.next
        ahead = self._ending.enter_context(RowsAhead(row_at, first, processes)) if processes else row_at
        buckets = [dataclasses.replace(bucket, rows=bucket.rows * settings.scale) for bucket in BUCKETS]
        self.stream = BatchStream(ahead, buckets, self.config, tokenizer.token_id("<eos>"), position)

    def train(self) -> None:
        """Goes on to the last step. Progress is on stderr and in `metrics.jsonl`; weights are written as it goes."""
        with self._ending:
            if self._fresh and self._settings.sight:
                self._learn_to_see()
            self._train()

    def _learn_to_see(self) -> None:
        begun = time.monotonic()
        model = nnx.merge(self.trainer.graphdef, self.trainer.parameters())
        learn_to_see(model, self._tokenizer, self._settings.sight, self._settings.seed)
        self.trainer = demo_trainer(model, self._settings)
        self.seconds = time.monotonic() - begun
        self.save()

    def _train(self) -> None:
        done = int(self.trainer.state.step)
        forget_after(self.out, done)
        saved = time.monotonic()
        interval = Interval(self.seconds, self.config.canvas_length)
        with (self.out / METRICS_FILE).open("a") as log, tqdm(total=self.steps, initial=done, unit="step") as bar:
            for step in range(done + 1, self.steps + 1):
                bucket, batch = next(self.stream)
                interval.add(batch, self.trainer.step(batch, _objective(bucket)))
                self.examples += bucket.rows
                bar.update()
                if step % LOG_EVERY and step < self.steps:
                    continue
                row = {"step": step, "examples": self.examples, **interval.close()}
                self.seconds = row["seconds"]
                bar.set_postfix({"loss": row["loss"], "tokens/s": round(row["tokens_per_second"])})
                log.write(json.dumps(row) + "\n")
                log.flush()
                if time.monotonic() - saved > SAVE_SECONDS or step == self.steps:
                    self.save()
                    saved = time.monotonic()
                    interval.resume()

    def save(self) -> None:
        """The run as it stands, and its averaged weights as a checkpoint that can be served."""
        facts = {"seconds": self.seconds, "examples": self.examples}
        self.checkpoints.save(self.trainer, self.stream.position, facts)
        export(self.out, self.config, self.generation, self.trainer.parameters(), jnp.dtype("bfloat16"))
        write_processor_config(self.out, DEMO_PROCESSOR)


def _objective(bucket: Bucket) -> Objective:
    return Objective(
        blocks=bucket.blocks,
        copies=COPIES,
        fill_weight=0.3,
        balance_weight=0.003,
        own=OWN,
        shifted=SHIFTED,
        mistaken=MISTAKEN,
    )
