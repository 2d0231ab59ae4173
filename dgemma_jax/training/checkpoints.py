"""Saving a run so that it goes on as if it had never stopped: weights, optimiser, average, noise and data position."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import jax
from orbax.checkpoint import v1 as ocp

from dgemma_jax.training.rows import Position
from dgemma_jax.training.trainer import Trainer, TrainState


class RunCheckpoints:
    """The checkpoints of one run in a folder; the newest `keep` stay."""

    def __init__(self, folder: Path, *, keep: int = 2) -> None:
        policy = ocp.training.preservation_policies.LatestN(keep)
        # Orbax's own policies do not have the type that it declares for them.
        self._checkpointer = ocp.training.Checkpointer(folder.absolute(), preservation_policy=policy)  # type: ignore[arg-type]

    @property
    def latest(self) -> int | None:
        """The batches that the newest checkpoint had seen; None: there is none."""
        newest = self._checkpointer.latest
        return None if newest is None else newest.step

    def save(self, trainer: Trainer, position: Position, facts: dict[str, Any]) -> None:
        """Writes everything that changes. `facts` is what the run counts besides, as JSON."""
        data: dict[str, Any] = {"position": position.as_json(), "facts": facts}
        state = trainer.state._asdict()
        self._checkpointer.save(int(trainer.state.step), state, overwrite=True, custom_metadata=data)

    def restore(self, trainer: Trainer) -> tuple[Position, dict[str, Any]]:
        """Moves the trainer to the newest checkpoint; where the data stood, and the facts of the run.

        Raises:
            ValueError: there is none.
        """
        newest = self._checkpointer.latest
        if newest is None:
            raise ValueError("this run has no checkpoint to go on from")
        abstract = jax.tree.map(_abstract, trainer.state._asdict())
        trainer.state = TrainState(**self._checkpointer.load(newest.step, abstract))
        data = cast(dict[str, Any], self._checkpointer.checkpointables_metadata(newest.step).custom_metadata)
        return Position(**data["position"]), data["facts"]

    def close(self) -> None:
        """Waits for what is being written."""
        self._checkpointer.close()


def _abstract(x: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
