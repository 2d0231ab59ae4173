"""One text layer: attention, then a dense MLP and the experts side by side."""

from __future__ import annotations

import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from dgemma_jax.config import LayerType, TextConfig
from dgemma_jax.model.attention import KeyValue, Segment
from dgemma_jax.model.mlp import GatedMLP
from dgemma_jax.model.moe import Experts
from dgemma_jax.model.norms import RMSNorm
from dgemma_jax.model.parameter import constant
from dgemma_jax.model.residual import AttendedScales, BranchScales, add_attended, add_branches
from dgemma_jax.model.rope import Rotation
from dgemma_jax.model.router import Router, Routing
from dgemma_jax.model.self_attention import Attention

Mode = Literal["encoder", "decoder"]


class LayerOutput(NamedTuple):
    """The residual stream, the tokens' own keys and values, and how they were routed."""

    x_BTD: jax.Array
    key_value: KeyValue
    routing: Routing


class Layer(nnx.Module):
    """The same weights read the prompt (encoder) and the canvas (decoder); only the output scalar differs."""

    def __init__(self, config: TextConfig, layer_type: LayerType, rngs: nnx.Rngs, dtype: jnp.dtype, backend: str):
        def norm() -> RMSNorm:
            return RMSNorm(config.hidden_size, config.rms_norm_eps, dtype)

        def out_norm() -> RMSNorm:
            # A fresh model adds half-sized branches to the residual stream: it trains more evenly from scratch.
            return RMSNorm(config.hidden_size, config.rms_norm_eps, dtype, start=0.5)

        self.layer_type, self.epsilon = layer_type, config.rms_norm_eps
        self.attention_norm, self.attention_out_norm = norm(), out_norm()
        self.attention = Attention(config, layer_type, rngs, dtype)
        self.mlp_norm, self.mlp_out_norm = norm(), norm()
        self.mlp = GatedMLP(config.hidden_size, config.intermediate_size, rngs, dtype)
        self.experts_norm, self.experts_out_norm = norm(), norm()
        self.router = Router(config, rngs, dtype)
        self.experts = Experts(config, rngs, dtype, backend)
        self.feedforward_out_norm = out_norm()
        self.encoder_scalar_1 = constant(1.0, dtype, one=1)
        self.decoder_scalar_1 = constant(1.0, dtype, one=1)

    def __call__(
        self, x_BTD: jax.Array, turn: Rotation, past: Segment | None, mask_BTT: jax.Array | None, mode: Mode
    ) -> LayerOutput:
        """Reads `past` and the tokens themselves, as far as the masks allow."""
        graphdef, state = nnx.split(self)
        return _traced_once(graphdef, state, x_BTD, turn, past, mask_BTT, mode)

    def run(
        self, x_BTD: jax.Array, turn: Rotation, past: Segment | None, mask_BTT: jax.Array | None, mode: Mode
    ) -> LayerOutput:
        """The layer itself."""
        attended_BTD, key_value = self.attention(self.attention_norm(x_BTD), turn, past, mask_BTT)
        mesh, D = self.attention.mesh, x_BTD.shape[-1]
        read = add_attended(x_BTD, attended_BTD, self._attended_scales(), self.epsilon, mesh)
        routing = self.router.route(read.for_router_BTD.reshape(-1, D))
        expert_BTD = self.experts(read.for_experts_BTD.reshape(-1, D), routing).reshape(x_BTD.shape)
        mlp_BTD = self.mlp(read.for_mlp_BTD)
        x_BTD = add_branches(read.x_BTD, mlp_BTD, expert_BTD, self._branch_scales(mode), self.epsilon, mesh)
        return LayerOutput(x_BTD, key_value, routing)

    def _attended_scales(self) -> AttendedScales:
        norms = (self.attention_out_norm, self.mlp_norm, self.experts_norm)
        out_D, mlp_D, experts_D = (norm.scale[...] for norm in norms)
        return AttendedScales(out_D, mlp_D, experts_D, self.router.scale_D[...])

    def _branch_scales(self, mode: Mode) -> BranchScales:
        scalar_1 = self.encoder_scalar_1 if mode == "encoder" else self.decoder_scalar_1
        norms = (self.mlp_out_norm, self.experts_out_norm, self.feedforward_out_norm)
        mlp_D, experts_D, sum_D = (norm.scale[...] for norm in norms)
        return BranchScales(mlp_D, experts_D, sum_D, scalar_1[...])


@functools.partial(jax.jit, static_argnums=(0, 6))
def _traced_once(
    graphdef: nnx.GraphDef,
    state: nnx.State,
    x_BTD: jax.Array,
    turn: Rotation,
    past: Segment | None,
    mask_BTT: jax.Array | None,
    mode: Mode,
) -> LayerOutput:
    """Layers of one kind differ in their parameters only: a program is traced and lowered once for all of them.

    The compiler inlines them, so that what runs is the same.
    """
    return nnx.merge(graphdef, state).run(x_BTD, turn, past, mask_BTT, mode)
