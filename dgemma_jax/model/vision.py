"""The vision tower: image patches in, soft tokens in the language model's width out.

    patches [I, N, P] in [0, 1], positions [I, N, 2] as (x, y) -> layers -> average pooling -> projection [I, M, D]

Source: transformers' Gemma 4 vision model (patch embedder, two-dimensional rotary, pooling by position).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from dgemma_jax.config import VisionConfig
from dgemma_jax.model.attention import KeyValue, Segment, attend
from dgemma_jax.model.mlp import gelu
from dgemma_jax.model.norms import RMSNorm, rms_norm
from dgemma_jax.model.parameter import constant, einsum, weight
from dgemma_jax.model.rope import Rotation, patch_rotation, rotate_patches


class SoftTokens(NamedTuple):
    """Soft tokens of each image, padded: [I, M, D], and which are real: [I, M]."""

    soft_IMD: jax.Array
    real_IM: jax.Array


class Linear(nnx.Module):
    """A matrix, with inputs and outputs clipped to learned bounds where the config asks for it."""

    def __init__(self, config: VisionConfig, rngs: nnx.Rngs, dtype: jnp.dtype, **axes: int):
        self.matrix_ZY = weight(rngs, dtype, **axes)
        self.clipped = config.use_clipped_linears
        if self.clipped:
            self.input_min, self.output_min = constant(-jnp.inf, dtype), constant(-jnp.inf, dtype)
            self.input_max, self.output_max = constant(jnp.inf, dtype), constant(jnp.inf, dtype)

    def __call__(self, x_INY: jax.Array) -> jax.Array:
        if self.clipped:
            x_INY = jnp.clip(x_INY, self.input_min[...], self.input_max[...])
        y_INZ = einsum("iny,zy->inz", x_INY, self.matrix_ZY[...])
        return jnp.clip(y_INZ, self.output_min[...], self.output_max[...]) if self.clipped else y_INZ


class VisionAttention(nnx.Module):
    """Bidirectional attention over the patches of one image."""

    def __init__(self, config: VisionConfig, rngs: nnx.Rngs, dtype: jnp.dtype):
        size, width = config.head_dim, config.hidden_size
        queries, keys = config.num_attention_heads * size, config.num_key_value_heads * size
        self.q = Linear(config, rngs, dtype, vision_heads=queries, vision=width)
        self.k = Linear(config, rngs, dtype, vision_heads=keys, vision=width)
        self.v = Linear(config, rngs, dtype, vision_heads=keys, vision=width)
        self.o = Linear(config, rngs, dtype, vision=width, vision_heads=queries)
        self.q_norm = RMSNorm(size, config.rms_norm_eps, dtype, axis="vision_head", start=size**-0.25)
        self.k_norm = RMSNorm(size, config.rms_norm_eps, dtype, axis="vision_head", start=size**-0.25)
        self.head_size = size

    def __call__(self, x_INW: jax.Array, turn: tuple[Rotation, Rotation], mask_INN: jax.Array) -> jax.Array:
        def heads(x: jax.Array) -> jax.Array:
            return x.reshape(*x.shape[:2], -1, self.head_size)

        q_INHC = rotate_patches(self.q_norm(heads(self.q(x_INW))), turn)
        k_INKC = rotate_patches(self.k_norm(heads(self.k(x_INW))), turn)
        v_INKC = rms_norm(heads(self.v(x_INW)), None, self.k_norm.epsilon)
        out_INHC = attend(q_INHC, [Segment(KeyValue(jnp.moveaxis(k_INKC, 1, 2), jnp.moveaxis(v_INKC, 1, 2)), mask_INN)])
        return self.o(out_INHC.reshape(*x_INW.shape[:2], -1))


class VisionLayer(nnx.Module):
    """Attention and a gated MLP, each normed before and after."""

    def __init__(self, config: VisionConfig, rngs: nnx.Rngs, dtype: jnp.dtype):
        def norm() -> RMSNorm:
            return RMSNorm(config.hidden_size, config.rms_norm_eps, dtype, axis="vision")

        hidden, width = config.intermediate_size, config.hidden_size
        self.attention_norm, self.attention_out_norm = norm(), norm()
        self.attention = VisionAttention(config, rngs, dtype)
        self.mlp_norm, self.mlp_out_norm = norm(), norm()
        self.gate = Linear(config, rngs, dtype, vision_mlp=hidden, vision=width)
        self.up = Linear(config, rngs, dtype, vision_mlp=hidden, vision=width)
        self.down = Linear(config, rngs, dtype, vision=width, vision_mlp=hidden)

    def __call__(self, x_INW: jax.Array, turn: tuple[Rotation, Rotation], mask_INN: jax.Array) -> jax.Array:
        x_INW = x_INW + self.attention_out_norm(self.attention(self.attention_norm(x_INW), turn, mask_INN))
        normed_INW = self.mlp_norm(x_INW)
        return x_INW + self.mlp_out_norm(self.down(gelu(self.gate(normed_INW)) * self.up(normed_INW)))


class VisionTower(nnx.Module):
    """Patches to soft tokens in the language model's width."""

    def __init__(self, config: VisionConfig, text_width: int, rngs: nnx.Rngs, dtype: jnp.dtype):
        width = config.hidden_size
        self.config = config
        self.patch_WP = weight(rngs, dtype, vision=width, patch=config.patch_values)
        self.position_2NW = weight(rngs, dtype, std=0.02, xy=2, position=config.position_embedding_size, vision=width)
        self.layers = nnx.List([VisionLayer(config, rngs, dtype) for _ in range(config.num_hidden_layers)])
        self.standard_bias_W = constant(0.0, dtype, vision=width) if config.standardize else None
        self.standard_scale_W = constant(1.0, dtype, vision=width) if config.standardize else None
        self.projection_DW = weight(rngs, dtype, embed=text_width, vision=width)

    def __call__(self, patches_INP: jax.Array, positions_IN2: jax.Array) -> SoftTokens:
        """Soft tokens of images given as patches; a patch at position (-1, -1) is padding."""
        real_IN = jnp.any(positions_IN2 != -1, axis=-1)
        x_INW = self._embed(patches_INP, positions_IN2, real_IN)
        turn = patch_rotation(positions_IN2, self.config.head_dim, self.config.rope_theta, x_INW.dtype)
        mask_INN = jnp.broadcast_to(real_IN[:, None], (*real_IN.shape, real_IN.shape[1]))
        for layer in self.layers:
            x_INW = layer(x_INW, turn, mask_INN)
        pooled_IMW, real_IM = pool(x_INW, positions_IN2, real_IN, self.config.pooling_kernel_size)
        normed_IMW = rms_norm(self._standardize(pooled_IMW).astype(x_INW.dtype), None, self.config.rms_norm_eps)
        return SoftTokens(einsum("imw,dw->imd", normed_IMW, self.projection_DW[...]), real_IM)

    def _embed(self, patches_INP: jax.Array, positions_IN2: jax.Array, real_IN: jax.Array) -> jax.Array:
        table_2NW = self.position_2NW[...]
        pixels_INP = (2 * (patches_INP.astype(jnp.float32) - 0.5)).astype(table_2NW.dtype)
        x_INW = einsum("inp,wp->inw", pixels_INP, self.patch_WP[...])
        at_IN2 = jnp.maximum(positions_IN2, 0)
        position_INW = table_2NW[0][at_IN2[..., 0]] + table_2NW[1][at_IN2[..., 1]]
        return x_INW + jnp.where(real_IN[..., None], position_INW, 0)

    def _standardize(self, x_IMW: jax.Array) -> jax.Array:
        # fp32: sqrt(width) times the activations, and the bias, are large numbers that nearly cancel.
        x_IMW = x_IMW.astype(jnp.float32) * self.config.hidden_size**0.5
        if self.standard_bias_W is None or self.standard_scale_W is None:
            return x_IMW
        bias_11W = self.standard_bias_W[...].astype(jnp.float32)[None, None]
        return (x_IMW - bias_11W) * self.standard_scale_W[...].astype(jnp.float32)[None, None]


def pool(x_INW: jax.Array, positions_IN2: jax.Array, real_IN: jax.Array, kernel: int) -> tuple[jax.Array, jax.Array]:
    """Averages `kernel` x `kernel` neighbouring patches: [I, N / kernel^2, W], and which of them are real.

    The soft tokens of an image come row by row; padding comes last.
    """
    soft_tokens = positions_IN2.shape[1] // kernel**2
    at_IN2 = jnp.maximum(positions_IN2, 0)
    columns_I1 = (jnp.max(at_IN2[..., 0], axis=1, keepdims=True) + 1) // kernel
    cell_IN = at_IN2[..., 0] // kernel + columns_I1 * (at_IN2[..., 1] // kernel)
    member_INM = (jax.nn.one_hot(cell_IN, soft_tokens) * real_IN[..., None]).astype(jnp.float32)
    # fp32: the reference averages in fp32 and rounds the average to the working type.
    pooled_IMW = einsum("inm,inw->imw", member_INM / kernel**2, x_INW.astype(jnp.float32))
    return pooled_IMW.astype(x_INW.dtype), jnp.any(member_INM > 0, axis=1)
