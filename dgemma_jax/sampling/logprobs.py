"""How sure the model was of the tokens of a canvas."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dgemma_jax.model.slices import MOST_LOGITS, sliced
from dgemma_jax.model.text import TextModel
from dgemma_jax.sampling.options import MOST_LOGPROBS
from dgemma_jax.sharding import pin


@dataclasses.dataclass(frozen=True)
class TokenLogprob:
    """One token of an answer: its log-probability, and the likeliest tokens in its place with theirs."""

    logprob: float
    likeliest: tuple[tuple[int, float], ...]


class Logprobs(NamedTuple):
    """Natural logarithms of probabilities, per canvas position: of its token, and of the likeliest, likeliest first."""

    token_BL: jax.Array
    likeliest_BLQ: jax.Array
    logprob_BLQ: jax.Array


def logprobs(text: TextModel, x_BLD: jax.Array, canvas_BL: jax.Array) -> Logprobs:
    """Reads off hidden states how likely the canvas's tokens and the likeliest ones are, at temperature 1.

    Q is always `MOST_LOGPROBS`, whatever a request asks for: one shape, one program. Of equally likely tokens the
    smaller id comes first.
    """

    def scored(x_BSD: jax.Array, canvas_BS: jax.Array) -> Logprobs:
        log_BSV = jax.nn.log_softmax(pin(text.logits(x_BSD), text.mesh, "rows", "canvas", "tokens"), axis=-1)
        logprob_BSQ, likeliest_BSQ = jax.lax.top_k(log_BSV, min(MOST_LOGPROBS, log_BSV.shape[-1]))
        token_BS = jnp.take_along_axis(log_BSV, canvas_BS[..., None], axis=-1)[..., 0]
        return Logprobs(token_BS, likeliest_BSQ, logprob_BSQ)

    return sliced(scored, text.config.vocab_size, x_BLD, canvas_BL, most=MOST_LOGITS // 4)


def of_row(logprobs: Logprobs, row: int, tokens: int, likeliest: int) -> tuple[TokenLogprob, ...]:
    """What a request asked for: of its row the first `tokens` positions, each with so many of the likeliest."""
    token_L, likeliest_LQ, logprob_LQ = (np.asarray(values)[row, :tokens].tolist() for values in logprobs)
    return tuple(
        TokenLogprob(logprob, tuple(zip(ids[:likeliest], values[:likeliest], strict=True)))
        for logprob, ids, values in zip(token_L, likeliest_LQ, logprob_LQ, strict=True)
    )
