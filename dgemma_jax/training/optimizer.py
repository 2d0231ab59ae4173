"""Optimisers with warm-up and decay over the parameters that are trained, and the running average of those.

adamw       the published fine-tuning recipes' choice
adafactor   second moments as row and column sums: for full fine-tuning where AdamW's state does not fit
muon        orthogonalised momentum for the matrices, AdamW for the rest: from scratch it takes about two thirds of
            AdamW's steps to the same loss (https://kellerjordan.github.io/posts/muon)
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from optax.contrib import MuonDimensionNumbers, muon

Name = Literal["adamw", "adafactor", "muon"]
Schedule = Literal["cosine", "hold"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """`steps` counts updates; each takes the mean gradient of `accumulate` batches.

    schedule: after the warm-up, "cosine" falls to `final` of the peak; "hold" stays at the peak and falls straight to
    it over the last `cooldown` of the steps, so that a run can be prolonged until then.
    average: decay of the running average of the weights, which is what gets shipped; 0 keeps none.
    scalar_rate: what muon's AdamW, for embeddings and vectors, learns at, as a multiple of `learning_rate`.
    """

    steps: int
    name: Name = "adamw"
    learning_rate: float = 1.5e-4
    warmup: int = 25
    schedule: Schedule = "cosine"
    final: float = 0.1
    cooldown: float = 0.25
    weight_decay: float = 1e-4
    b1: float = 0.95
    b2: float = 0.99
    clip: float = 1.0
    accumulate: int = 1
    average: float = 0.0
    scalar_rate: float = 1.0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.accumulate < 1 or not self.learning_rate > 0 or not self.clip > 0:
            raise ValueError(f"steps, accumulate, learning_rate and clip must be positive, found {self}")
        if not 0 <= self.average < 1:
            raise ValueError(f"average must be in [0, 1), found {self.average}")


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """Clipping, then the chosen optimiser on its schedule; matrices alone decay, with muon those that it updates."""
    rate = learning_rate(config)
    decay: dict[str, Any] = {"weight_decay": config.weight_decay}
    rule: optax.GradientTransformation
    match config.name:
        case "adamw":
            rule = optax.adamw(rate, b1=config.b1, b2=config.b2, mask=_matrices, **decay)
        case "adafactor":
            rule = _adafactor(rate, config.weight_decay)
        case "muon":
            rule = muon(
                rate,
                adam_learning_rate=lambda step: rate(step) * config.scalar_rate,
                adam_b1=config.b1,
                adam_b2=config.b2,
                consistent_rms=0.2,  # updates as large as AdamW's: rates and decay carry over
                weight_decay_mask=_matrices,
                muon_weight_dimension_numbers=_orthogonal,
                **decay,
            )
    chain = optax.chain(optax.clip_by_global_norm(config.clip), rule)
    return chain if config.accumulate == 1 else optax.MultiSteps(chain, config.accumulate).gradient_transformation()


def _adafactor(rate: optax.Schedule, weight_decay: float) -> optax.GradientTransformation:
    """As `optax.adafactor`, which adds the decay behind the rate, so that it neither warms up nor falls with it."""
    return optax.chain(
        optax.scale_by_factored_rms(),
        optax.clip_by_block_rms(1.0),
        optax.add_decayed_weights(weight_decay, _matrices),
        optax.scale_by_learning_rate(rate),
    )


def learning_rate(config: OptimizerConfig) -> optax.Schedule:
    """The rate of each update, counted from zero."""
    peak, low = config.learning_rate, config.learning_rate * config.final
    warmup = min(config.warmup, config.steps - 1)
    if config.schedule == "cosine":
        return optax.warmup_cosine_decay_schedule(0.0, peak, warmup, config.steps, low)
    fall = max(1, min(round(config.steps * config.cooldown), config.steps - warmup))
    parts = [optax.linear_schedule(0.0, peak, max(1, warmup)), optax.linear_schedule(peak, low, fall)]
    return optax.join_schedules([parts[0], optax.constant_schedule(peak), parts[1]], [warmup, config.steps - fall])


def _matrices(params: Any) -> Any:
    return jax.tree.map(lambda x: x.ndim >= 2, params)


def _orthogonal(params: Any) -> Any:
    """For each matrix which of its axes are inputs and which outputs; None for what AdamW updates."""

    def numbers(variable: Any) -> MuonDimensionNumbers | None:
        return _dimension_numbers(variable.get_metadata("axes"))

    return jax.tree.map(lambda v: v.replace(numbers(v)), params, is_leaf=lambda node: isinstance(node, nnx.Variable))


def _dimension_numbers(axes: tuple[str, ...]) -> MuonDimensionNumbers | None:
    if len(axes) < 2 or {"vocabulary", "position"} & set(axes):
        return None
    if axes[0] == "experts":
        return MuonDimensionNumbers(2, 1) if len(axes) == 3 else None  # one matrix an expert; the router is none
    if axes[0] == "embed" and len(axes) == 3:
        return MuonDimensionNumbers((1, 2), 0)  # all heads back to the residual stream
    return MuonDimensionNumbers(len(axes) - 1, tuple(range(len(axes) - 1)))


def update_average(average: Any, params: Any, decay: float, step: jax.Array) -> Any:
    """The running average after a step; early steps weigh more, so that the start is forgotten soon."""
    rate = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda a, p: a * rate + p * (1 - rate), average, params)
