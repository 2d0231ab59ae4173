"""The whole model and its two modes over one set of weights.

    encode            prompt or committed canvas -> cache         causal, writes, no logits
    denoise           canvas over the cache      -> hidden states  bidirectional, reads only

Source: transformers' `diffusion_gemma`; the arithmetic is described in its model card and `modeling` file.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from dgemma_jax import cache as kv
from dgemma_jax.config import ModelConfig
from dgemma_jax.model import masks
from dgemma_jax.model.text import TextModel, TextOutput
from dgemma_jax.model.vision import VisionTower
from dgemma_jax.sharding import pin_cache


class DiffusionGemma(nnx.Module):
    """Text model and, where the checkpoint has one, vision tower."""

    def __init__(
        self,
        config: ModelConfig,
        rngs: nnx.Rngs,
        dtype: jnp.dtype,
        backend: str = "all_experts",
        head: str = "materialised",
    ):
        self.config = config
        self.text = TextModel(config.text, rngs, dtype, backend, head)
        vision = config.vision
        self.vision = None if vision is None else VisionTower(vision, config.text.hidden_size, rngs, dtype)

    def encode(
        self, cache: kv.Cache, tokens_BT: jax.Array, count_B: jax.Array, soft_BTD: jax.Array | None = None
    ) -> kv.Cache:
        """Reads tokens causally behind what is cached. Of each row only the first `count_B` tokens count; where no row
        has any, nothing is computed.

        `soft_BTD` has an image's soft token wherever the token is the image token. All soft tokens of an image
        must come in one call: they see each other.
        """
        position_BT = cache.length_B[:, None] + jnp.arange(tokens_BT.shape[1])[None]
        # The condition also keeps the cache from being copied: what it gives depends on every layer's look at the
        # cache, so XLA sees that all of them are over where the first key is written. By itself a layer's key does not
        # depend on what the layer attends to, and where it might be written too early XLA copies what is there.
        new = jax.lax.cond(
            jnp.any(count_B > 0),
            lambda: self.read(tokens_BT, position_BT, cache, soft_BTD).key_values,
            lambda: kv.blank(cache, tokens_BT.shape[1]),
        )
        return pin_cache(kv.append(cache, new, count_B), self.text.mesh)

    def read(
        self,
        tokens_BT: jax.Array,
        position_BT: jax.Array,
        cache: kv.Cache | None,
        soft_BTD: jax.Array | None = None,
        *,
        remat: bool = False,
    ) -> TextOutput:
        """The encoder pass itself: hidden states and keys of tokens at the given positions, nothing written."""
        x_BTD = self.text.embed(tokens_BT)
        block_BT = None
        if soft_BTD is not None:
            is_soft_BT = tokens_BT == self.config.image_token_id
            # Soft tokens enter as they are: the embedding scale is for words only.
            x_BTD = jnp.where(is_soft_BT[..., None], soft_BTD.astype(x_BTD.dtype), x_BTD)
            block_BT = masks.image_blocks(is_soft_BT) if self.config.text.bidirectional_images else None
        past = None if cache is None else cache.layers
        where = None if cache is None else kv.key_positions(cache)
        mask = masks.encoder_masks(where, position_BT, block_BT, self.config.text.sliding_window)
        return self.text.run(x_BTD, position_BT, past, mask, "encoder", remat=remat)

    def denoise(self, cache: kv.Cache, canvas_BL: jax.Array, soft_BLD: jax.Array | None) -> jax.Array:
        """One pass over the canvas, which follows the cached tokens: hidden states [B, L, D] for `text.logits`.

        `soft_BLD` is the soft embedding of the previous prediction, None before there is one.
        """
        position_BL = cache.length_B[:, None] + jnp.arange(canvas_BL.shape[1])[None]
        mask = masks.canvas_masks(kv.key_positions(cache), cache.length_B, self.config.text.sliding_window)
        x_BLD = self.text.self_conditioning(self.text.embed(canvas_BL), soft_BLD)
        return self.text.run(x_BLD, position_BL, cache.layers, mask, "decoder").x_BTD
