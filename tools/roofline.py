"""What a pass must do at least: arithmetic and bytes, from the configuration alone.

Matrix products only: everything else is small beside them. A pass reads every weight once, the embedding once, of the
cache what its masks let it see.
"""

from __future__ import annotations

import dataclasses

from dgemma_jax.checkpoint.quantize import group_size
from dgemma_jax.config import SLIDING, LayerType, TextConfig


@dataclasses.dataclass(frozen=True)
class Work:
    """Operations (a multiplication and an addition are two) and bytes."""

    flops: float
    bytes: float

    def __add__(self, other: Work) -> Work:
        """One after the other."""
        return Work(self.flops + other.flops, self.bytes + other.bytes)

    def seconds(self, flops_per_second: float, bytes_per_second: float) -> float:
        """The least time on a machine with these peaks, arithmetic and reading at the same time."""
        return max(self.flops / flops_per_second, self.bytes / bytes_per_second)


def experts(config: TextConfig, tokens: int, width: int, kind: str | None = None) -> Work:
    """The experts of one layer; `width` bytes a number, unless the matrices of layers are quantised as `kind` says."""
    D, F = config.hidden_size, config.moe_intermediate_size
    # Evenly spread: an expert is missed by a token as often as it is not among its chosen ones.
    read = config.num_experts * (1 - (1 - config.top_k_experts / config.num_experts) ** tokens)
    one = matrix_bytes(2 * F, D, width, kind) + matrix_bytes(D, F, width, kind)
    return Work(6.0 * tokens * config.top_k_experts * D * F, read * one)


def matrix_bytes(outputs: int, inputs: int, width: int, kind: str | None) -> float:
    """A matrix of a layer, with its scales."""
    if kind is None:
        return outputs * inputs * width
    if kind == "int4":
        return outputs * (inputs / 2 + 2 * (inputs // group_size(inputs)))
    return outputs * (inputs + 4)


def head(config: TextConfig, tokens: int, width: int) -> Work:
    """The vocabulary pass: logits and expected embedding."""
    one = config.vocab_size * config.hidden_size
    return Work(4.0 * tokens * one, one * width)


def layers(config: TextConfig, tokens: int, context: int, width: int, rows: int = 1, kind: str | None = None) -> Work:
    """All layers, for each row so many tokens behind so many cached ones; the tokens of a row see each other."""
    parts = (_layer(config, each, tokens, context, width, rows, kind) for each in config.layer_types)
    return sum(parts, Work(0, 0))


def reading(config: TextConfig, tokens: int, context: int, width: int, rows: int = 1, kind: str | None = None) -> Work:
    """The same where tokens are only read into a cache: of the last layer its keys and values are enough."""
    *before, last = config.layer_types
    parts = (_layer(config, each, tokens, context, width, rows, kind) for each in before)
    return sum(parts, _key_values(config, last, rows * tokens, width, kind))


def _layer(
    config: TextConfig, layer_type: LayerType, tokens: int, context: int, width: int, rows: int, kind: str | None
) -> Work:
    """One layer: attention, the dense MLP, and the experts with their router."""
    D, F, total = config.hidden_size, config.intermediate_size, rows * tokens
    heads = config.num_attention_heads * config.head_size(layer_type)
    kv = config.key_value_heads(layer_type) * config.head_size(layer_type)
    dense = 2 * D * heads + 3 * D * F + D * config.num_experts
    read = matrix_bytes(heads, D, width, kind) + matrix_bytes(D, heads, width, kind)
    read += 2 * matrix_bytes(F, D, width, kind) + matrix_bytes(D, F, width, kind) + config.num_experts * D * width
    cached = min(context, config.sliding_window - 1) if layer_type == SLIDING else context
    own = Work(2.0 * total * dense + 4.0 * total * (cached + tokens) * heads, read + rows * 2 * cached * kv * width)
    return own + _key_values(config, layer_type, total, width, kind) + experts(config, total, width, kind)


def _key_values(config: TextConfig, layer_type: LayerType, tokens: int, width: int, kind: str | None) -> Work:
    """The projections to keys and values; in full layers both are of one."""
    outputs = config.key_value_heads(layer_type) * config.head_size(layer_type) * (2 if layer_type == SLIDING else 1)
    D = config.hidden_size
    return Work(2.0 * tokens * D * outputs, matrix_bytes(outputs, D, width, kind))


def step(config: TextConfig, canvas: int, context: int, width: int, rows: int = 1, kind: str | None = None) -> Work:
    """A denoising step of so many canvases: self-conditioning, layers, vocabulary."""
    conditioning, tokens = 3 * config.hidden_size * config.intermediate_size, rows * canvas
    return (
        Work(2.0 * tokens * conditioning, conditioning * width)
        + layers(config, canvas, context, width, rows, kind)
        + head(config, tokens, width)
    )
