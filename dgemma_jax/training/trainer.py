"""The training step and its state.

What is trained is one pytree and what is frozen another; `combine` makes the model's parameters of both. Full
training combines by merging the two, LoRA by adding its products to frozen matrices.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from dgemma_jax.sharding import by_row, place
from dgemma_jax.training.objective import Batch, Metrics, Objective, loss
from dgemma_jax.training.optimizer import OptimizerConfig, make_optimizer, update_average

Combine = Callable[[Any, nnx.State], nnx.State]


class TrainState(NamedTuple):
    """Everything that changes: trained parameters, their running average (None: not kept), optimiser, batches seen."""

    trained: Any
    average: Any
    optimizer: optax.OptState
    step: jax.Array


def merge(trained: nnx.State, frozen: nnx.State) -> nnx.State:
    """Full training: the trained parameters beside the frozen ones."""
    return nnx.merge_state(trained, frozen)


class Trainer:
    """A model being trained. `state` is a plain value; `step` moves it on by one batch.

    Args:
        graphdef, trained, frozen, combine: the model; see the module's text. Each is used up: its memory becomes the
            state's.
        dtype: of the arithmetic. The trained parameters keep their own, which should be float32.
        mesh: of `sharding.make_mesh`: the rows of a batch lie over `data`, parameters, their average and what the
            optimiser keeps of each as the table there says. `graphdef` is then of a module that was `spread`.
    """

    def __init__(
        self,
        graphdef: nnx.GraphDef,
        trained: Any,
        frozen: nnx.State,
        optimizer: OptimizerConfig,
        *,
        seed: int,
        combine: Combine = merge,
        dtype: str = "float32",
        mesh: Mesh | None = None,
    ) -> None:
        self.graphdef, self.config, self.combine = graphdef, optimizer, combine
        self.dtype, self.mesh, self.key = jnp.dtype(dtype), mesh, jax.random.key(seed)
        self.optimizer = make_optimizer(optimizer)
        trained, self.frozen = place(trained, mesh), place(frozen, mesh)
        self._frozen_leaves, self._frozen_structure = jax.tree.flatten(self.frozen)
        average = jax.tree.map(jnp.copy, trained) if optimizer.average else None
        state = TrainState(trained, average, self.optimizer.init(trained), jnp.zeros((), jnp.int32))
        self.state = place(state, mesh)
        self._places = None if mesh is None else jax.tree.map(lambda x: x.sharding, self.state)

    @property
    def state(self) -> TrainState:
        """Everything that changes, as it stands."""
        return jax.tree.unflatten(self._structure, self._leaves)

    @state.setter
    def state(self, state: TrainState) -> None:
        # Kept as a list of arrays: to take the state apart at every call costs more than a GPU's step.
        self._leaves, self._structure = jax.tree.flatten(state)
        leaves, self._trained_structure = jax.tree.flatten(state.trained)
        self._trained = len(leaves)

    def step(self, batch: Batch, objective: Objective) -> Metrics:
        """One batch. The noise depends on the seed and the number of the batch alone."""
        if self.mesh is not None:
            batch = by_row(batch, self.mesh)
        # Two programs: the update is compiled once, however many shapes of batches there are. The key is an argument:
        # as a constant of the program it would have every new seed compile all of them anew.
        trained, step = self._leaves[: self._trained], self._leaves[-1]
        gradients, metrics = self._gradients(trained, self._frozen_leaves, batch, self.key, step, objective)
        self._leaves = self._update(self._leaves, gradients)
        return metrics

    def evaluate(self, batch: Batch, objective: Objective, key: jax.Array) -> Metrics:
        """The losses of `best` on a batch that is not learned from, under noise of its own."""
        return self._losses(self.best(), self.frozen, batch, key, objective)

    def best(self) -> Any:
        """What is trained, averaged if an average is kept."""
        return self.state.trained if self.state.average is None else self.state.average

    def parameters(self) -> nnx.State:
        """All parameters of the model, with `best` in it."""
        return self.combine(self.best(), self.frozen)

    @functools.partial(jax.jit, static_argnums=(0, 5))
    def _losses(self, trained: Any, frozen: nnx.State, batch: Batch, key: jax.Array, objective: Objective) -> Metrics:
        return self._loss(trained, frozen, batch, key, objective)[1]

    @functools.partial(jax.jit, static_argnums=(0, 6))
    def _gradients(
        self,
        trained: list[jax.Array],
        frozen: list[jax.Array],
        batch: Batch,
        key: jax.Array,
        step: jax.Array,
        objective: Objective,
    ) -> tuple[list[jax.Array], Metrics]:
        start = jax.tree.unflatten(self._trained_structure, trained)
        fixed = jax.tree.unflatten(self._frozen_structure, frozen)

        def objective_of(trained: Any) -> tuple[jax.Array, Metrics]:
            return self._loss(trained, fixed, batch, jax.random.fold_in(key, step), objective)

        gradients, metrics = jax.grad(objective_of, has_aux=True)(start)
        return jax.tree.leaves(gradients), metrics

    def _loss(
        self, trained: Any, frozen: nnx.State, batch: Batch, key: jax.Array, objective: Objective
    ) -> tuple[jax.Array, Metrics]:
        params = jax.tree.map(lambda x: x.astype(self.dtype), self.combine(trained, frozen))
        return loss(nnx.merge(self.graphdef, params), batch, key, objective)

    @functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
    def _update(self, leaves: list[jax.Array], gradient_leaves: list[jax.Array]) -> list[jax.Array]:
        state: TrainState = jax.tree.unflatten(self._structure, leaves)
        gradients = jax.tree.unflatten(self._trained_structure, gradient_leaves)
        updates, optimizer = self.optimizer.update(gradients, state.optimizer, state.trained)
        trained = optax.apply_updates(state.trained, updates)
        average, step = state.average, state.step + 1
        if average is not None:
            updates_done = state.step // self.config.accumulate
            moved = update_average(average, trained, self.config.average, updates_done)
            whole = step % self.config.accumulate == 0  # nothing changes between two updates
            average = jax.tree.map(lambda new, old: jnp.where(whole, new, old), moved, average)
        state = TrainState(trained, average, optimizer, step)
        state = state if self._places is None else jax.lax.with_sharding_constraint(state, self._places)
        return jax.tree.leaves(state)
