"""The training loss: denoise every canvas of every answer, and predict every next token, in one pass over a batch.

    clean tokens -> encoder pass -> keys and values, next-token loss
    noisy canvases, over those keys -> decoder pass -> cross-entropy with the clean canvas

Gradients flow through the keys into the encoder pass. Half of the examples are conditioned on a first, gradient-
free prediction of the same canvases, as in generation; for the other half the soft embedding is zero.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dgemma_jax.model.diffusion_gemma import DiffusionGemma
from dgemma_jax.model.masks import block_diffusion_masks
from dgemma_jax.model.router import Routing
from dgemma_jax.sampling.head import soft_embedding
from dgemma_jax.training.corruption import corrupt, noise_levels


class Batch(NamedTuple):
    """Rows of clean tokens: prompt, answer, end-of-sequence fill to a whole canvas, padding.

    tokens_BS: int [batch, length]. prefix_B: prompt tokens. answer_B: answer tokens without fill. blocks_B: canvases.
    """

    tokens_BS: jax.Array
    prefix_B: jax.Array
    answer_B: jax.Array
    blocks_B: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """Weights and switches. `blocks`: canvases of the longest answer in the batch. `copies`: noise copies of each."""

    blocks: int
    copies: int = 1
    t_min: float = 1e-3
    next_token_weight: float = 1.0
    prompt_weight: float = 0.3
    fill_weight: float = 1.0
    balance_weight: float = 0.0


class Metrics(NamedTuple):
    """Means over what each loss counts, in nats; `accuracy` of single denoising predictions; `balance` is 1 at best."""

    loss: jax.Array
    denoising: jax.Array
    next_token: jax.Array
    balance: jax.Array
    accuracy: jax.Array


def loss(model: DiffusionGemma, batch: Batch, key: jax.Array, objective: Objective) -> tuple[jax.Array, Metrics]:
    """The scalar to minimise, and what it is made of. The batch needs an even number of rows."""
    B, S = batch.tokens_BS.shape
    clean = model.read(batch.tokens_BS, jnp.broadcast_to(jnp.arange(S)[None], (B, S)), None)
    next_token = _next_token_loss(model, clean.x_BTD, batch, objective)
    logits_BRV, target_BR, weight_BR, routings = _denoise(model, clean.key_values, batch, key, objective)
    denoising = _mean(_cross_entropy(logits_BRV, target_BR), weight_BR)
    balance = _balance(clean.routings + routings)
    total = denoising + objective.next_token_weight * next_token + objective.balance_weight * balance
    accuracy = _mean((jnp.argmax(logits_BRV, -1) == target_BR).astype(jnp.float32), weight_BR)
    return total, Metrics(total, denoising, next_token, balance, accuracy)


def _denoise(model, key_values, batch: Batch, key: jax.Array, objective: Objective):  # type: ignore[no-untyped-def]
    """Logits for all noisy canvases, with their targets, weights and routings."""
    B, S = batch.tokens_BS.shape
    L = model.config.canvas_length
    block_R, copy_R = canvas_layout(objective.blocks, objective.copies, L)
    position_BR = batch.prefix_B[:, None] + (block_R * L + jnp.arange(len(block_R)) % L)[None]
    target_BR = jnp.take_along_axis(batch.tokens_BS, jnp.minimum(position_BR, S - 1), axis=1)
    keys = jax.random.split(key)
    t_BR = jnp.repeat(noise_levels(keys[0], (B, objective.blocks * objective.copies), objective.t_min), L, axis=1)
    noisy_BR = corrupt(keys[1], target_BR, t_BR, model.config.text.vocab_size)
    masks = block_diffusion_masks(batch.prefix_B, block_R, copy_R, L, S, model.config.text.sliding_window)

    def decode(rows: slice, soft_BRD: jax.Array):  # type: ignore[no-untyped-def]
        x_BRD = model.text.self_conditioning(model.text.embed(noisy_BR[rows]), soft_BRD)
        past = jax.tree.map(lambda x: x[rows], key_values)
        seen = jax.tree.map(lambda mask: mask if len(mask) == 1 else mask[rows], masks)
        return model.text.run(x_BRD, position_BR[rows], past, seen, "decoder")

    half, D = slice(0, B // 2), model.config.text.hidden_size
    nothing_BRD = jnp.zeros((*noisy_BR.shape, D), model.text.embedding_VD.dtype)
    first = model.text.logits(decode(half, nothing_BRD[half]).x_BTD)
    soft_BRD = jax.lax.stop_gradient(nothing_BRD.at[half].set(soft_embedding(model.text, first)))
    output = decode(slice(None), soft_BRD)
    weight_BR = _canvas_weights(position_BR, block_R, batch, objective)
    return model.text.logits(output.x_BTD), target_BR, weight_BR, output.routings


def canvas_layout(blocks: int, copies: int, canvas_length: int) -> tuple[jax.Array, jax.Array]:
    """For each of the R noisy tokens its canvas and its noise copy."""
    canvas_R = jnp.repeat(jnp.arange(blocks * copies), canvas_length)
    return canvas_R % blocks, canvas_R // blocks


def _canvas_weights(position_BR: jax.Array, block_R: jax.Array, batch: Batch, objective: Objective) -> jax.Array:
    fill_BR = position_BR >= (batch.prefix_B + batch.answer_B)[:, None]
    weight_BR = jnp.where(fill_BR, objective.fill_weight, 1.0)
    return jnp.where(block_R[None] < batch.blocks_B[:, None], weight_BR, 0.0)


def _next_token_loss(model: DiffusionGemma, x_BSD: jax.Array, batch: Batch, objective: Objective) -> jax.Array:
    target_BS = batch.tokens_BS[:, 1:]
    position_1S = jnp.arange(1, x_BSD.shape[1])[None]
    end_B1 = (batch.prefix_B + batch.blocks_B * model.config.canvas_length)[:, None]
    weight_BS = jnp.where(position_1S < batch.prefix_B[:, None], objective.prompt_weight, 1.0)
    weight_BS = jnp.where(position_1S >= (batch.prefix_B + batch.answer_B)[:, None], objective.fill_weight, weight_BS)
    weight_BS = jnp.where(position_1S < end_B1, weight_BS, 0.0)
    return _mean(_cross_entropy(model.text.logits(x_BSD[:, :-1]), target_BS), weight_BS)


def _cross_entropy(logits_BTV: jax.Array, target_BT: jax.Array) -> jax.Array:
    log_BTV = jax.nn.log_softmax(logits_BTV, axis=-1)
    return -jnp.take_along_axis(log_BTV, target_BT[..., None], axis=-1)[..., 0]


def _mean(value: jax.Array, weight: jax.Array) -> jax.Array:
    return jnp.sum(value * weight) / jnp.maximum(jnp.sum(weight), 1.0)


def _balance(routings: tuple[Routing, ...]) -> jax.Array:
    """How evenly experts are used, averaged over layers: E * sum of (share of tokens * mean probability); 1 is even."""
    values = []
    for routing in routings:
        E = routing.probability_AE.shape[1]
        share_E = jnp.zeros(E, jnp.float32).at[routing.expert_AX.reshape(-1)].add(1.0 / routing.expert_AX.size)
        values.append(E * jnp.sum(share_E * jnp.mean(routing.probability_AE, axis=0)))
    return jnp.mean(jnp.stack(values))
