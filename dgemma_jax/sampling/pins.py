"""Canvas positions whose token is settled before the canvas is denoised: the rest is denoised around them."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from dgemma_jax.model.text import TextModel
from dgemma_jax.sampling.head import Prediction

FREE = -1
"""No token id: a position that the model decides."""


def hold(canvas_BL: jax.Array, pin_BL: jax.Array) -> jax.Array:
    """The canvas with the settled tokens in their places."""
    return jnp.where(pin_BL == FREE, canvas_BL, pin_BL)


def certain(text: TextModel, prediction: Prediction, pin_BL: jax.Array) -> Prediction:
    """The prediction as if the model had been certain of the settled tokens: drawn, without entropy, conditioned on."""
    is_free_BL = pin_BL == FREE
    embedded_BLD = text.embed(jnp.maximum(pin_BL, 0)).astype(prediction.soft_BLD.dtype)
    return Prediction(
        argmax_BL=hold(prediction.argmax_BL, pin_BL),
        drawn_BL=hold(prediction.drawn_BL, pin_BL),
        entropy_BL=jnp.where(is_free_BL, prediction.entropy_BL, 0.0),
        soft_BLD=jnp.where(is_free_BL[..., None], prediction.soft_BLD, embedded_BLD),
    )
