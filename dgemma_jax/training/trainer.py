"""The training step and its state."""

from __future__ import annotations

import functools
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from dgemma_jax.config import ModelConfig
from dgemma_jax.model.diffusion_gemma import DiffusionGemma
from dgemma_jax.training.objective import Batch, Metrics, Objective, loss
from dgemma_jax.training.optimizer import OptimizerConfig, make_optimizer, update_average


class TrainState(NamedTuple):
    """Everything that changes: trained and frozen parameters, the running average, the optimiser, the step."""

    params: nnx.State
    frozen: nnx.State
    average: nnx.State
    optimizer: optax.OptState
    step: jax.Array


def is_trained(path: tuple, _: object) -> bool:
    """Text parameters but the layer scalars, which the architecture keeps as constants."""
    return path[0] == "text" and not str(path[-1]).endswith("_scalar_1")


class Trainer:
    """A model being trained from scratch. `state` is a plain value; `step` moves it on by one batch."""

    def __init__(self, config: ModelConfig, optimizer: OptimizerConfig, seed: int):
        model = DiffusionGemma(config, nnx.Rngs(seed), jnp.dtype("float32"))
        self.graphdef: nnx.GraphDef
        self.graphdef, params, frozen = nnx.split(model, is_trained, ...)  # type: ignore[misc]
        self.optimizer = make_optimizer(optimizer)
        self.average_decay = optimizer.average
        copied = jax.tree.map(jnp.copy, params)  # its own buffers: both are donated to the step
        self.state = TrainState(params, frozen, copied, self.optimizer.init(params), jnp.zeros((), jnp.int32))
        self.key = jax.random.key(seed)

    def step(self, batch: Batch, objective: Objective) -> Metrics:
        """One update. The noise depends on the seed and the step alone."""
        self.state, metrics = self._step(self.state, batch, objective)
        return metrics

    def averaged(self) -> nnx.State:
        """All parameters, the trained ones averaged."""
        return nnx.merge_state(self.state.average, self.state.frozen)

    @functools.partial(jax.jit, static_argnums=(0, 3), donate_argnums=1)
    def _step(self, state: TrainState, batch: Batch, objective: Objective) -> tuple[TrainState, Metrics]:
        def objective_of(params: nnx.State) -> tuple[jax.Array, Metrics]:
            model = nnx.merge(self.graphdef, params, state.frozen)
            return loss(model, batch, jax.random.fold_in(self.key, state.step), objective)

        gradients, metrics = jax.grad(objective_of, has_aux=True)(state.params)
        updates, optimizer = self.optimizer.update(gradients, state.optimizer, state.params)
        params = cast(nnx.State, optax.apply_updates(state.params, updates))
        average = update_average(state.average, params, self.average_decay, state.step)
        return TrainState(params, state.frozen, average, optimizer, state.step + 1), metrics
