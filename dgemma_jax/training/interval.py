"""What a run tells about itself every so often: mean losses and the pace."""

from __future__ import annotations

import time

import jax
import numpy as np

from dgemma_jax.training.objective import Batch, Metrics
from dgemma_jax.training.run_folder import RunError


class Interval:
    """What happened since the last line of the metrics."""

    def __init__(self, seconds: float, canvas_length: int) -> None:
        """`seconds` that the run took before it was stopped."""
        self._length = canvas_length
        self._started = time.monotonic() - seconds
        self._since = time.monotonic()
        self._metrics: list[Metrics] = []
        self._tokens = 0

    def add(self, batch: Batch, metrics: Metrics) -> None:
        """Counts a batch; its tokens are those of prompts, answers and fill."""
        self._metrics.append(metrics)
        self._tokens += int(np.sum(batch.prefix_B) + np.sum(batch.blocks_B) * self._length)

    def close(self) -> dict[str, float]:
        """Means since the last call, and the pace.

        Raises:
            RunError: a loss that is no number: what was learned since the last save is lost, and nothing after it is
                worth saving.
        """
        found = jax.device_get(self._metrics)  # waits for the device
        now = time.monotonic()
        means = {name: round(float(np.mean([getattr(m, name) for m in found])), 5) for name in Metrics._fields}
        if not np.isfinite(means["loss"]):
            raise RunError(f"the loss became {means['loss']}; try a lower learning rate, in another folder")
        pace = {
            "seconds": round(now - self._started, 2),
            "tokens_per_second": round(self._tokens / (now - self._since), 1),
        }
        self._metrics, self._tokens = [], 0
        self.resume()
        return {**pace, **means}

    def resume(self) -> None:
        """Leaves the time since the last line out of the pace: it went into saving or scoring."""
        self._since = time.monotonic()
