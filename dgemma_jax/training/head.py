"""The vocabulary in training: losses and soft embeddings from hidden states, a slice of the positions at a time."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from dgemma_jax.model.slices import MOST_LOGITS, sliced
from dgemma_jax.model.text import TextModel
from dgemma_jax.sampling.head import draw, soft_embedding


def token_losses(text: TextModel, x_BTD: jax.Array, target_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy in nats of each target, and whether it is the likeliest token: float32 [B, T] both."""

    def losses(x_BSD: jax.Array, target_BS: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits_BSV = text.logits(x_BSD)
        log_BSV = jax.nn.log_softmax(logits_BSV, axis=-1)
        nll_BS = -jnp.take_along_axis(log_BSV, target_BS[..., None], axis=-1)[..., 0]
        return nll_BS, (jnp.argmax(logits_BSV, -1) == target_BS).astype(jnp.float32)

    return sliced(losses, text.config.vocab_size, x_BTD, target_BT, most=MOST_LOGITS, remat=True)


def soft_embeddings(text: TextModel, x_BTD: jax.Array) -> jax.Array:
    """What self-conditioning reads of a prediction given as hidden states: [B, T, D]."""
    return sliced(
        lambda x_BSD: soft_embedding(text, text.logits(x_BSD)),
        text.config.vocab_size,
        x_BTD,
        most=MOST_LOGITS,
        remat=True,
    )


def drawn_tokens(text: TextModel, x_BTD: jax.Array, uniform_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A token drawn from each prediction, at temperature 1, and the prediction's entropy in nats: [B, T] both."""

    def drawn(x_BSD: jax.Array, uniform_BS: jax.Array) -> tuple[jax.Array, jax.Array]:
        log_BSV = jax.nn.log_softmax(text.logits(x_BSD), axis=-1)
        probability_BSV = jnp.exp(log_BSV)
        return draw(probability_BSV, uniform_BS), -jnp.sum(probability_BSV * log_BSV, axis=-1)

    return sliced(drawn, text.config.vocab_size, x_BTD, uniform_BT, most=MOST_LOGITS)
