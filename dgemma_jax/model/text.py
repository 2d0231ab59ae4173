"""The language model: embedding, layers, final norm, tied head.

`run` is the one pass that everything shares: prefill, commit, denoising and training differ in the masks, in
what is cached, and in the layer scalar.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from dgemma_jax.config import LayerType, TextConfig
from dgemma_jax.model.attention import KeyValue, Segment
from dgemma_jax.model.layer import Layer, Mode
from dgemma_jax.model.norms import RMSNorm
from dgemma_jax.model.parameter import einsum, weight
from dgemma_jax.model.rope import rotation, text_frequencies
from dgemma_jax.model.router import Routing
from dgemma_jax.model.self_conditioning import SelfConditioning
from dgemma_jax.model.vocabulary_parallel import look_up
from dgemma_jax.sharding import pin


class Masks(NamedTuple):
    """Who sees whom in one kind of layer: the cached keys, and the tokens among themselves. None: all.

    `used` of the cached keys, the first ones, are there in the fullest row; see `Segment`.
    """

    past_BTS: jax.Array | None
    self_BTT: jax.Array | None
    used: jax.Array | None = None


class TextOutput(NamedTuple):
    """Hidden states after the last layer (not yet normed), and of each layer its keys, values and routing."""

    x_BTD: jax.Array
    key_values: tuple[KeyValue, ...]
    routings: tuple[Routing, ...]


class TextModel(nnx.Module):
    """Parameters of the language model and the passes over them."""

    mesh: Mesh | None = None  # see `sharding.spread`

    def __init__(self, config: TextConfig, rngs: nnx.Rngs, dtype: jnp.dtype, backend: str, head: str):
        self.config = config
        self.head = head  # how the sampler passes over the vocabulary, one of `sampling.heads.HEADS`
        self.embedding_VD = weight(rngs, dtype, vocabulary=config.vocab_size, embed=config.hidden_size)
        self.layers = nnx.List([Layer(config, kind, rngs, dtype, backend) for kind in config.layer_types])
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype)
        self.self_conditioning = SelfConditioning(config, rngs, dtype)

    @property
    def embedding_scale(self) -> jax.Array:
        """sqrt(D), rounded to the weights' type as the reference does: 53.0 for the 26B in bf16, not 53.07."""
        return jnp.asarray(self.config.hidden_size**0.5, self.embedding_VD.dtype)

    def embed(self, tokens_BT: jax.Array) -> jax.Array:
        """Scaled embeddings of token ids: [B, T, D]."""
        return look_up(self.embedding_VD[...], tokens_BT, self.mesh) * self.embedding_scale

    def soft_embed(self, probability_BLV: jax.Array) -> jax.Array:
        """The expected scaled embedding under a distribution over the vocabulary: [B, L, D]."""
        embedding_VD = self.embedding_VD[...]
        return einsum("blv,vd->bld", probability_BLV.astype(embedding_VD.dtype), embedding_VD) * self.embedding_scale

    def run(
        self,
        x_BTD: jax.Array,
        positions_BT: jax.Array,
        past: tuple[KeyValue, ...] | None,
        masks: dict[LayerType, Masks],
        mode: Mode,
        *,
        remat: bool = False,
    ) -> TextOutput:
        """All layers. `past` holds what is cached of each layer; None reads nothing but the tokens.

        `remat`: a backward pass computes each layer again instead of keeping its intermediate values.
        """
        kinds = sorted(set(self.config.layer_types))
        turns = {kind: rotation(positions_BT, text_frequencies(self.config, kind), x_BTD.dtype) for kind in kinds}
        key_values, routings = [], []
        x_BTD = pin(x_BTD, self.mesh, "rows", "tokens", "embed")
        for index, layer in enumerate(self.layers):
            mask = masks[layer.layer_type]
            segment = None if past is None else Segment(past[index], mask.past_BTS, mask.used)
            with jax.named_scope(f"layer_{index}"):
                run = functools.partial(layer, mode=mode)
                output = (jax.checkpoint(run) if remat else run)(x_BTD, turns[layer.layer_type], segment, mask.self_BTT)
            x_BTD = pin(output.x_BTD, self.mesh, "rows", "tokens", "embed")
            key_values.append(output.key_value)
            routings.append(output.routing)
        return TextOutput(x_BTD, tuple(key_values), tuple(routings))

    def logits(self, x_BTD: jax.Array) -> jax.Array:
        """Final norm, tied head, soft cap: float32 [B, T, V] within +-final_logit_softcapping."""
        return self.cap(einsum("btd,vd->btv", self.norm(x_BTD), self.embedding_VD[...]))

    def cap(self, raw: jax.Array) -> jax.Array:
        """The soft cap on products with the embedding: float32."""
        # fp32: capping in bf16 moves entropies by up to a tenth of a nat.
        cap = self.config.final_logit_softcapping
        return jnp.tanh(raw.astype(jnp.float32) / cap) * cap
