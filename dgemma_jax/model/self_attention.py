"""The attention of one text layer: projections, norms, rotation, and the way its scores are taken."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from dgemma_jax.config import SLIDING, LayerType, TextConfig
from dgemma_jax.model.attention import KeyValue, Segment, attend
from dgemma_jax.model.canvas_attention import attend_canvas, fits
from dgemma_jax.model.head_norms import Heads, Scales, norm_heads
from dgemma_jax.model.norms import RMSNorm
from dgemma_jax.model.parameter import apart, einsum, weight
from dgemma_jax.model.rope import Rotation


class Attention(nnx.Module):
    """Grouped-query attention of one text layer. Full layers have no value projection: the values are the raw keys."""

    mesh: Mesh | None = None  # see `sharding.spread`

    def __init__(self, config: TextConfig, layer_type: LayerType, rngs: nnx.Rngs, dtype: jnp.dtype):
        heads, kv_heads = config.num_attention_heads, config.key_value_heads(layer_type)
        size, width = config.head_size(layer_type), config.hidden_size
        self.q_HCD = weight(rngs, dtype, heads=heads, head=size, embed=width)
        self.k_KCD = weight(rngs, dtype, kv_heads=kv_heads, head=size, embed=width)
        self.v_KCD = weight(rngs, dtype, kv_heads=kv_heads, head=size, embed=width) if layer_type == SLIDING else None
        self.o_DHC = weight(rngs, dtype, std=(heads * size) ** -0.5, embed=width, heads=heads, head=size)
        # Attention has no 1/sqrt(C): trained models learn it in these scales, a fresh one starts there.
        self.q_norm = RMSNorm(size, config.rms_norm_eps, dtype, axis="head", start=size**-0.25)
        self.k_norm = RMSNorm(size, config.rms_norm_eps, dtype, axis="head", start=size**-0.25)

    def __call__(
        self, x_BTD: jax.Array, turn: Rotation, past: Segment | None, mask_BTT: jax.Array | None
    ) -> tuple[jax.Array, KeyValue]:
        """Attends to `past` (if any) and to the tokens themselves; returns the output and the tokens' own keys."""
        q_BTHC = apart("btd,hcd->bthc", x_BTD, self.q_HCD[...])
        key_BTKC = apart("btd,kcd->btkc", x_BTD, self.k_KCD[...])
        value_BTKC = key_BTKC if self.v_KCD is None else apart("btd,kcd->btkc", x_BTD, self.v_KCD[...])
        raw, scales = Heads(q_BTHC, key_BTKC, value_BTKC), Scales(self.q_norm.scale[...], self.k_norm.scale[...])
        q_BTHC, new = norm_heads(raw, scales, turn, self.k_norm.epsilon, self.mesh)
        segments = [Segment(new, mask_BTT)] if past is None else [past, Segment(new, mask_BTT)]
        run = attend_canvas if self.mesh is None and fits(q_BTHC, segments) else attend
        return einsum("bthc,dhc->btd", run(q_BTHC, segments), self.o_DHC[...]), new
