"""Supervised fine-tuning: a checkpoint and a JSONL file of chats to an adapter, or to a whole new checkpoint.

    data -> rows -> batches -> Trainer -> every so often: metrics, the run's state, what can be served

Running it again in the same folder goes on where it stopped, with the same result as if it had not.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any, TextIO

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tqdm import tqdm

from dgemma_jax.checkpoint.export import export
from dgemma_jax.checkpoint.load import load_parameters
from dgemma_jax.checkpoint.names import entries
from dgemma_jax.config import ModelConfig
from dgemma_jax.config_json import read_generation_config
from dgemma_jax.sharding import make_mesh, parse
from dgemma_jax.training import lora
from dgemma_jax.training.batch_shapes import choose_buckets
from dgemma_jax.training.checkpoints import RunCheckpoints
from dgemma_jax.training.dataset import ChatFormat, Dataset
from dgemma_jax.training.evaluation import evaluate
from dgemma_jax.training.interval import Interval
from dgemma_jax.training.lora import LoraConfig
from dgemma_jax.training.objective import Objective
from dgemma_jax.training.optimizer import OptimizerConfig, learning_rate
from dgemma_jax.training.rows import BatchStream, Bucket
from dgemma_jax.training.run_folder import (
    METRICS_FILE,
    STATE_FOLDER,
    copy_companions,
    fingerprint,
    forget_after,
    remember,
    require_same,
)
from dgemma_jax.training.trainer import Trainer, merge

FREEZABLE = {
    "router": "router",
    "vision": "vision",
    "attention": "attention",
    "mlp": "dense mlp",
    "experts": "experts",
    "embedding": "embedding",
    "self_conditioning": "self_conditioning",
    "norms": "norms",
}
"""What full fine-tuning may leave as it is: a name, and the part of the model (`Entry.part`) that it means."""

_NOT_SETTINGS = ("out", "save_every", "keep", "log_every")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SftConfig:
    """One run. The optimiser's `steps` are updates; each takes `accumulate` batches of `batch` rows.

    lora: size and places of the adapter; None trains the model itself, except for the parts in `freeze`.
    dtype: of the arithmetic; what is trained is float32.
    mesh: devices to spread rows and weights over, as `sharding.make_mesh` reads it; None is one.
    """

    model: Path
    data: Path
    out: Path
    optimizer: OptimizerConfig
    eval_data: Path | None = None
    lora: LoraConfig | None = dataclasses.field(default_factory=LoraConfig)
    freeze: tuple[str, ...] = ("router",)
    batch: int = 8
    max_length: int = 1024
    dtype: str = "bfloat16"
    seed: int = 0
    copies: int = 1
    t_min: float = 1e-3
    next_token_weight: float = 1.0
    prompt_weight: float = 1.0
    fill_weight: float = 1.0
    remat: bool = False
    mesh: str | None = None
    save_every: int = 200
    keep: int = 2
    log_every: int = 10

    def __post_init__(self) -> None:
        data = 1 if self.mesh is None else parse(self.mesh)["data"]
        if self.batch < 1 or self.batch % (2 * data):
            # Half of the rows on each device of `data` are conditioned on a first prediction.
            raise ValueError(
                f"batch must be a multiple of {2 * data} where rows lie over {data} device(s): {self.batch}"
            )
        if not 0 <= self.t_min < 1:
            raise ValueError(f"t_min must be at least 0 and below 1, found {self.t_min}")
        for name in ("next_token_weight", "prompt_weight", "fill_weight"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must not be negative, found {getattr(self, name)}")
        if unknown := set(self.freeze) - set(FREEZABLE):
            raise ValueError(f"freeze must be of {', '.join(FREEZABLE)}, found {', '.join(sorted(unknown))}")

    def objective(self, bucket: Bucket) -> Objective:
        """The loss of a batch of this shape."""
        names = ("copies", "t_min", "next_token_weight", "prompt_weight", "fill_weight", "remat")
        return Objective(blocks=bucket.blocks, **{name: getattr(self, name) for name in names})


class SftRun:
    """A run in its folder: `train` takes it to its end, from wherever it is."""

    def __init__(self, config: SftConfig) -> None:
        """Reads everything, and checks it before weights are loaded.

        Raises:
            DataError: rows that cannot be trained on.
            RunError: a folder that holds another run.
            ValueError, OSError: a checkpoint that cannot be read.
        """
        self.config, self.chat = config, ChatFormat.from_folder(config.model)
        self.data = Dataset.read(config.data, self.chat, config.max_length)
        self.eval = None
        if config.eval_data is not None:
            self.eval = Dataset.read(config.eval_data, self.chat, config.max_length)
        settings = _settings(config, self.data, self.eval)
        require_same(config.out, settings)
        shapes = self.data.shapes + (self.eval.shapes if self.eval else [])
        self.buckets = choose_buckets(shapes, config.batch)
        self.fill = self.chat.tokenizer.token_id("<eos>")
        self.trainer = make_trainer(config, self.chat.config)
        remember(config.out, settings)
        self.checkpoints = RunCheckpoints(config.out / STATE_FOLDER, keep=config.keep)
        self.seconds, position = 0.0, None
        if self.checkpoints.latest is not None:
            position, facts = self.checkpoints.restore(self.trainer)
            self.seconds = facts["seconds"]
        # Before the first save, not even the losses that a run begins with stay.
        forget_after(config.out, self.step if position else -1)
        row_at = functools.partial(self.data.shuffled, seed=config.seed)
        self.stream = BatchStream(row_at, self.buckets, self.chat.config, self.fill, position)

    @property
    def step(self) -> int:
        """Updates done."""
        return int(self.trainer.state.step) // self.config.optimizer.accumulate

    def train(self) -> dict[str, Any]:
        """Goes on to the last step and returns its line of the metrics."""
        config, steps = self.config, self.config.optimizer.steps
        interval = Interval(self.seconds, self.chat.config.canvas_length)
        last: dict[str, Any] = {}
        with (
            (config.out / METRICS_FILE).open("a", encoding="utf-8") as log,
            tqdm(total=steps, initial=self.step, unit="step") as bar,
        ):
            if self.step == 0 and self.eval is not None:
                _write(log, {"step": 0, **self._evaluated()})
            for step in range(self.step + 1, steps + 1):
                self._update(interval)
                bar.update()
                saves = step % config.save_every == 0 or step == steps
                if step % config.log_every == 0 or saves:
                    last = {"step": step, **self._rate(step), **interval.close()}
                    bar.set_postfix({"loss": last["loss"], "tokens/s": round(last["tokens_per_second"])})
                    self.seconds = last["seconds"]
                    _write(log, last | (self._evaluated() if saves else {}))
                if saves:
                    self.save()
                    interval.resume()
        return last

    def save(self) -> None:
        """What can be served, then the state of the run."""
        self.write_result(self.config.out)
        self.checkpoints.save(self.trainer, self.stream.position, {"seconds": self.seconds})

    def write_result(self, folder: Path) -> None:
        """The adapter, or the whole checkpoint in bfloat16, as it now stands."""
        config = self.config
        if config.lora is not None:
            base = dataclasses.replace(config.lora, base=str(config.model))
            lora.save(folder, lora.Adapter(base, self.trainer.best()))
            return
        generation = read_generation_config(config.model)
        export(folder, self.chat.config, generation, self.trainer.parameters(), jnp.dtype("bfloat16"))
        copy_companions(config.model, folder)

    def _update(self, interval: Interval) -> None:
        for _ in range(self.config.optimizer.accumulate):
            bucket, batch = next(self.stream)
            interval.add(batch, self.trainer.step(batch, self.config.objective(bucket)))

    def _rate(self, step: int) -> dict[str, float]:
        return {"learning_rate": round(float(np.asarray(learning_rate(self.config.optimizer)(step - 1))), 9)}

    def _evaluated(self) -> dict[str, float]:
        if self.eval is None:
            return {}
        losses = evaluate(self.trainer, self.eval, self.buckets, self.chat.config, self.fill, self.config.objective)
        return {f"eval_{name}": round(value, 5) for name, value in losses.items()}


def make_trainer(config: SftConfig, model: ModelConfig) -> Trainer:
    """The model of the run, before its first step."""
    mesh = None if config.mesh is None else make_mesh(config.mesh, model.text)
    make = functools.partial(Trainer, seed=config.seed, dtype=config.dtype, mesh=mesh)
    read = functools.partial(load_parameters, config.model, model, backend="all_experts", mesh=mesh)
    if config.lora is not None:
        graphdef, params = read(dtype=jnp.dtype(config.dtype))
        adapter = lora.fresh(model, config.lora, config.seed)
        add = functools.partial(lora.combine, scale=config.lora.scale)
        return make(graphdef, adapter.params, params, config.optimizer, combine=add)
    graphdef, params = read(dtype=jnp.dtype("float32"))
    trained, frozen = split_trained(params, model, config.freeze)
    frozen = jax.tree.map(lambda x: x.astype(config.dtype), frozen)
    return make(graphdef, trained, frozen, config.optimizer, combine=merge)


def split_trained(params: nnx.State, model: ModelConfig, freeze: tuple[str, ...]) -> tuple[nnx.State, nnx.State]:
    """Parameters to train, and those of the frozen parts with what is a constant of the architecture."""
    parts = {FREEZABLE[name] for name in freeze} | {"layer scalars"}
    stays = {entry.path: entry.part in parts or _is_constant(str(entry.path[-1])) for entry in entries(model)}
    leaves = nnx.to_flat_state(params)
    trained = [(path, leaf) for path, leaf in leaves if not stays[path]]
    return nnx.from_flat_state(trained), nnx.from_flat_state([(p, leaf) for p, leaf in leaves if stays[p]])


def _is_constant(leaf: str) -> bool:
    """The standardising of soft tokens, and bounds of values."""
    return leaf.startswith("standard_") or leaf.endswith(("_min", "_max"))


def _settings(config: SftConfig, data: Dataset, held_out: Dataset | None) -> dict[str, Any]:
    """What makes the run what it is, by the names of the command line where there is one."""
    values = {name: value for name, value in dataclasses.asdict(config).items() if name not in _NOT_SETTINGS}
    optimizer, adapter = values.pop("optimizer"), values.pop("lora")
    values |= {f"optimizer.{name}": value for name, value in optimizer.items()}
    values |= {f"lora.{name}": value for name, value in (adapter or {"rank": None}).items()}
    values |= {"model": str(config.model.resolve()), "model_fingerprint": fingerprint(config.model)}
    values |= {"data": str(config.data.resolve()), "data_sha256": data.sha256()}
    values |= {"eval_data": str(config.eval_data), "eval_sha256": held_out.sha256() if held_out else None}
    return {"kind": "sft", **values}


def _write(log: TextIO, row: dict[str, Any]) -> None:
    log.write(json.dumps(row) + "\n")
    log.flush()
