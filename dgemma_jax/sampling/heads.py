"""Which vocabulary pass the sampler runs: of `head.py` (the plain one), `streaming.py`, `vocabulary_parallel.py`.

They agree.
"""

from __future__ import annotations

from collections.abc import Callable

import jax

from dgemma_jax.config import TextConfig
from dgemma_jax.model.text import TextModel
from dgemma_jax.sampling.head import Prediction, predict
from dgemma_jax.sampling.streaming import predict_streaming
from dgemma_jax.sampling.truncation import Truncation
from dgemma_jax.sampling.vocabulary_parallel import is_spread, predict_spread

Head = Callable[[TextModel, jax.Array, jax.Array, jax.Array, Truncation | None, jax.Array | None], Prediction]

HEADS: dict[str, Head] = {"materialised": predict, "streaming": predict_streaming}
SMALLEST_STREAMED = 1024
"""Tokens of the smallest vocabulary that is streamed. The plain pass reads the logits many times; on CPUs XLA takes
argmax and cumulative sum one number at a time: 13 % of a whole step where the vocabulary is no larger than 1280."""


def choose_head(config: TextConfig) -> str:
    """The pass for a vocabulary: streamed where its logits are large, on every platform."""
    return "streaming" if config.vocab_size >= SMALLEST_STREAMED else "materialised"


def head_of(text: TextModel) -> Head:
    """The pass that a model runs: the one it was made with, unless its vocabulary is spread over devices."""
    return predict_spread if is_spread(text) else HEADS[text.head]
