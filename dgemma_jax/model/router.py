"""Choosing experts: which, and with what weight."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from dgemma_jax.config import TextConfig
from dgemma_jax.model.norms import rms_norm, with_gradient_of
from dgemma_jax.model.parameter import constant, einsum, weight
from dgemma_jax.model.routing_kernels import Choice, choose, count, fits
from dgemma_jax.sharding import by_rows


def router_norm(x: jax.Array, scale_D: jax.Array, epsilon: float) -> jax.Array:
    """What experts are scored on: rounded before it is scaled, unlike other norms."""
    D = x.shape[-1]
    return rms_norm(x, None, epsilon) * scale_D.reshape((1,) * (x.ndim - 1) + (D,)) * D**-0.5


class Routing(NamedTuple):
    """Chosen experts of each token, their weights, and the probabilities they were chosen from.

    count_YE: where a kernel chose, how many of each tile of tokens chose each expert; see `routing_kernels.Choice`.
    """

    expert_AX: jax.Array
    weight_AX: jax.Array
    probability_AE: jax.Array
    count_YE: jax.Array | None = None


class Router(nnx.Module):
    """Scores every expert on the residual stream, with its own unscaled norm."""

    mesh: Mesh | None = None  # see `sharding.spread`

    def __init__(self, config: TextConfig, rngs: nnx.Rngs, dtype: jnp.dtype):
        # Whole on every device, unlike the experts: every token is scored against all of them.
        self.proj_ED = weight(rngs, dtype, std=1.0, scored=config.num_experts, embed=config.hidden_size)
        self.scale_D = constant(1.0, dtype, embed=config.hidden_size)
        self.per_expert_scale_E = constant(1.0, dtype, scored=config.num_experts)
        self.chosen = config.top_k_experts
        self.epsilon = config.rms_norm_eps

    def __call__(self, x_AD: jax.Array) -> Routing:
        """The choices of tokens of the residual stream."""
        return self.route(router_norm(x_AD, self.scale_D[...], self.epsilon))

    def route(self, normed_AD: jax.Array) -> Routing:
        """The choices of tokens that `router_norm` has normed."""
        score_AE = einsum("ad,ed->ae", normed_AD, self.proj_ED[...])
        scale_E, X = self.per_expert_scale_E[...], self.chosen
        probability_AE = _probabilities(score_AE)
        if self.mesh is None and fits(score_AE.shape[1], X):
            expert_AX, weight_AX, count_YE = _choose_by_kernel(score_AE, scale_E, X)
            return Routing(expert_AX, weight_AX, probability_AE, count_YE)
        return Routing(*choose_plainly(probability_AE, scale_E, X, self.mesh), probability_AE)


def _probabilities(score_AE: jax.Array) -> jax.Array:
    # fp32 softmax over all experts; the chosen weights are then renormalised among themselves.
    return jax.nn.softmax(score_AE.astype(jnp.float32), axis=-1)


def choose_plainly(
    probability_AE: jax.Array, scale_E: jax.Array, X: int, mesh: Mesh | None = None
) -> tuple[jax.Array, jax.Array]:
    """The likeliest `X` experts of each token, likeliest first, and their weights: both [A, X]."""
    weight_AX, expert_AX = by_rows(functools.partial(jax.lax.top_k, k=X), mesh)(probability_AE)
    weight_AX = weight_AX / jnp.sum(weight_AX, axis=-1, keepdims=True)
    # The per-expert scale comes after the renormalisation: the weights need not sum to one.
    return expert_AX, weight_AX * scale_E.astype(jnp.float32)[expert_AX]


def _choose_by_kernel(score_AE: jax.Array, scale_E: jax.Array, X: int) -> Choice:
    """The same with counts, by the kernel; its gradient is that of the plain way."""

    def plain(score_AE: jax.Array, scale_E: jax.Array) -> Choice:
        expert_AX, weight_AX = choose_plainly(_probabilities(score_AE), scale_E, X)
        return Choice(expert_AX, weight_AX, count(expert_AX, len(scale_E)))

    return with_gradient_of(plain, functools.partial(choose, X=X))(score_AE, scale_E)
