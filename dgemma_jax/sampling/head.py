"""The vocabulary pass: what the sampler needs to know of a prediction."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dgemma_jax.model.slices import MOST_LOGITS, sliced
from dgemma_jax.model.text import TextModel
from dgemma_jax.sampling.truncation import Truncation, truncate
from dgemma_jax.sharding import pin


class Prediction(NamedTuple):
    """Per canvas position: likeliest token, drawn token, entropy in nats, and the expected embedding."""

    argmax_BL: jax.Array
    drawn_BL: jax.Array
    entropy_BL: jax.Array
    soft_BLD: jax.Array


def predict(
    text: TextModel,
    x_BLD: jax.Array,
    temperature_B: jax.Array,
    uniform_BL: jax.Array,
    truncation: Truncation | None,
    goes_on_B: jax.Array | None = None,
) -> Prediction:
    """Materialises the logits [B, L, V], scales them by the temperature and reads everything off them.

    `goes_on_B`: which rows take another step, the only ones whose expected embedding matters; here all have one.
    Only the draw is truncated: how sure the model is, what it is sure of, and what it conditions on next, is its own.
    """
    logits_BLV = text.logits(x_BLD) / temperature_B[:, None, None]
    log_BLV = jax.nn.log_softmax(logits_BLV, axis=-1)
    probability_BLV = jnp.exp(log_BLV)
    drawable_BLV = probability_BLV if truncation is None else truncate(probability_BLV, truncation)
    return Prediction(
        argmax_BL=jnp.argmax(logits_BLV, axis=-1).astype(jnp.int32),
        drawn_BL=draw(drawable_BLV, uniform_BL),
        entropy_BL=-jnp.sum(probability_BLV * log_BLV, axis=-1),
        soft_BLD=soft_embedding(text, logits_BLV),
    )


def predict_drawn(
    text: TextModel, x_BLD: jax.Array, temperature_B: jax.Array, uniform_BL: jax.Array, truncation: Truncation
) -> jax.Array:
    """The drawn tokens of `predict` alone: [B, L]. The logits exist for a slice of the positions at a time."""

    def drawn(x_BSD: jax.Array, uniform_BS: jax.Array) -> jax.Array:
        # Whole on every device: ranking a vocabulary that is spread would talk at every bisection.
        logits_BSV = pin(text.logits(x_BSD), text.mesh, "rows", "canvas", "tokens")
        probability_BSV = jax.nn.softmax(logits_BSV / temperature_B[:, None, None], axis=-1)
        return draw(truncate(probability_BSV, truncation), uniform_BS)

    return sliced(drawn, text.config.vocab_size, x_BLD, uniform_BL, most=MOST_LOGITS // 4)


def draw(probability_BLV: jax.Array, uniform_BL: jax.Array) -> jax.Array:
    """The token at which the cumulative probability passes the uniform number (inverse transform sampling)."""
    cumulative_BLV = jnp.cumsum(probability_BLV, axis=-1)
    # Scaled by the actual total, which rounding keeps from being one: the last token is never passed.
    threshold_BL1 = (uniform_BL * cumulative_BLV[..., -1])[..., None]
    # A parallel sum is not quite monotonic: without the second condition it could pick an impossible token.
    candidate_BLV = (cumulative_BLV > threshold_BL1) & (probability_BLV > 0)
    likeliest_BL = jnp.argmax(probability_BLV, axis=-1)
    token_BL = jnp.where(jnp.any(candidate_BLV, axis=-1), jnp.argmax(candidate_BLV, axis=-1), likeliest_BL)
    return token_BL.astype(jnp.int32)


def soft_embedding(text: TextModel, logits_BLV: jax.Array) -> jax.Array:
    """The expected embedding of a prediction given as (temperature-scaled) logits: [B, L, D].

    The reference hands logits from step to step in the weights' type, so they are rounded to it first.
    """
    rounded_BLV = logits_BLV.astype(text.embedding_VD.dtype).astype(jnp.float32)
    return text.soft_embed(jax.nn.softmax(rounded_BLV, axis=-1))
