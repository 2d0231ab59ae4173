"""The training loss on rows that are not learned from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np

from dgemma_jax.config import ModelConfig
from dgemma_jax.training.dataset import Dataset
from dgemma_jax.training.objective import Batch, Objective
from dgemma_jax.training.rows import Bucket, Row, stack
from dgemma_jax.training.trainer import Trainer


def evaluate(
    trainer: Trainer,
    data: Dataset,
    buckets: Sequence[Bucket],
    config: ModelConfig,
    fill: int,
    objective: Callable[[Bucket], Objective],
) -> dict[str, float]:
    """Mean losses over all rows, weighted by their canvas tokens. The noise is the same every time."""
    totals: dict[str, float] = {}
    weights = 0.0
    for number, (bucket, rows) in enumerate(_batches(data, buckets, config.canvas_length)):
        goal = objective(bucket)
        key = jax.random.fold_in(jax.random.key(0), number)
        metrics = jax.device_get(trainer.evaluate(_padded(rows, bucket, config, fill), goal, key))
        weight = sum(_weight(row, config.canvas_length, goal.fill_weight) for row in rows)
        weights += weight
        for name, value in metrics._asdict().items():
            totals[name] = totals.get(name, 0.0) + weight * float(value)
    return {name: total / weights for name, total in totals.items()}


def _batches(data: Dataset, buckets: Sequence[Bucket], canvas_length: int) -> Iterator[tuple[Bucket, list[Row]]]:
    """Every row once; the last batch of each shape may be short."""
    ordered = sorted(buckets, key=lambda bucket: bucket.tokens_per_row(canvas_length))
    waiting: dict[Bucket, list[Row]] = {bucket: [] for bucket in ordered}
    for number in range(len(data)):
        row = data.row(number)
        bucket = next(bucket for bucket in ordered if bucket.holds(row, canvas_length))
        waiting[bucket].append(row)
        if len(waiting[bucket]) == bucket.rows:
            yield bucket, waiting[bucket]
            waiting[bucket] = []
    yield from ((bucket, rows) for bucket, rows in waiting.items() if rows)


def _padded(rows: list[Row], bucket: Bucket, config: ModelConfig, fill: int) -> Batch:
    """A whole batch, in which the first row fills the empty places and counts for nothing."""
    batch = stack([*rows, *[rows[0]] * (bucket.rows - len(rows))], bucket.length, config, fill)
    real_B = np.arange(bucket.rows) < len(rows)
    return batch._replace(prefix_B=batch.prefix_B * real_B, blocks_B=batch.blocks_B * real_B)


def _weight(row: Row, canvas_length: int, fill_weight: float) -> float:
    filled = row.blocks(canvas_length) * canvas_length - len(row.answer)
    return len(row.answer) + fill_weight * filled
