"""What a pass must do at least: arithmetic and bytes, from the configuration alone.

Matrix products only: everything else is small beside them. A pass reads every weight once, the embedding once, of the
cache what its masks let it see.
"""

from __future__ import annotations

import dataclasses

from dgemma_jax.config import SLIDING, TextConfig


@dataclasses.dataclass(frozen=True)
class Work:
    """Operations (a multiplication and an addition are two) and bytes."""

    flops: float
    bytes: float

    def seconds(self, flops_per_second: float, bytes_per_second: float) -> float:
        """The least time on a machine with these peaks, arithmetic and reading at the same time."""
        return max(self.flops / flops_per_second, self.bytes / bytes_per_second)


def experts(config: TextConfig, tokens: int, width: int) -> Work:
    """The experts of one layer; `width` bytes a number."""
    one = 3 * config.hidden_size * config.moe_intermediate_size
    # Evenly spread: an expert is missed by a token as often as it is not among its chosen ones.
    read = config.num_experts * (1 - (1 - config.top_k_experts / config.num_experts) ** tokens)
    return Work(2.0 * tokens * config.top_k_experts * one, read * one * width)


def head(config: TextConfig, tokens: int, width: int) -> Work:
    """The vocabulary pass: logits and expected embedding."""
    one = config.vocab_size * config.hidden_size
    return Work(4.0 * tokens * one, one * width)


def layers(config: TextConfig, tokens: int, context: int, width: int) -> Work:
    """All layers, for so many tokens behind so many cached ones; the tokens see each other."""
    flops, numbers = 0.0, 0.0
    for kind in config.layer_types:
        size, kv = config.head_size(kind), config.key_value_heads(kind)
        projections = 2 if kind == SLIDING else 1
        attention = config.hidden_size * size * (2 * config.num_attention_heads + projections * kv)
        dense = attention + 3 * config.hidden_size * config.intermediate_size + config.hidden_size * config.num_experts
        cached = min(context, config.sliding_window - 1) if kind == SLIDING else context
        flops += 2.0 * tokens * dense + 4.0 * tokens * (cached + tokens) * config.num_attention_heads * size
        numbers += dense + 2 * cached * kv * size
    of_experts = experts(config, tokens, width)
    count = config.num_hidden_layers
    return Work(flops + count * of_experts.flops, numbers * width + count * of_experts.bytes)


def step(config: TextConfig, canvas: int, context: int, width: int) -> Work:
    """A denoising step of one canvas: self-conditioning, layers, vocabulary."""
    conditioning = 3 * config.hidden_size * config.intermediate_size
    parts = (
        Work(2.0 * canvas * conditioning, conditioning * width),
        layers(config, canvas, context, width),
        head(config, canvas, width),
    )
    return Work(sum(part.flops for part in parts), sum(part.bytes for part in parts))
