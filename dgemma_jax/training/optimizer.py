"""AdamW with warm-up and cosine decay over the parameters that are trained, and their running average."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import optax
from flax import nnx


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """`average` is the decay of the running average of the weights, which is what gets shipped."""

    steps: int
    learning_rate: float = 3e-3
    warmup: int = 100
    weight_decay: float = 0.01
    clip: float = 1.0
    average: float = 0.999


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """Clipping, AdamW (decay on matrices only), warm-up then cosine to zero."""
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, min(config.warmup, config.steps - 1), config.steps, 0.0
    )
    return optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.adamw(schedule, b1=0.9, b2=0.98, weight_decay=config.weight_decay, mask=_is_matrix),
    )


def _is_matrix(params: nnx.State) -> nnx.State:
    return jax.tree.map(lambda x: x.ndim >= 2, params)


def update_average(average: nnx.State, params: nnx.State, decay: float, step: jax.Array) -> nnx.State:
    """The running average after a step; early steps weigh more, so that the start is forgotten soon."""
    rate = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda a, p: a * rate + p * (1 - rate), average, params)
