"""The training loss: denoise every canvas of every answer, and predict every next token, in one pass over a batch.

    clean tokens -> encoder pass -> keys and values, next-token loss
    noisy canvases, over those keys -> decoder pass -> cross-entropy with the clean canvas

Gradients flow through the keys into the encoder pass. Half of the examples are conditioned on a first, gradient-
free prediction of the same canvases, as in generation; for the other half the soft embedding is zero. Beyond the
published recipe, some of that half may be canvases that went through a step of the sampler first (`own`), and the end
of any canvas may stand a few places off (`shifted`), or a canvas may hold a wrong answer (`mistaken`).
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dgemma_jax.config import LayerType
from dgemma_jax.model.attention import KeyValue
from dgemma_jax.model.diffusion_gemma import DiffusionGemma
from dgemma_jax.model.masks import block_diffusion_masks
from dgemma_jax.model.router import Routing
from dgemma_jax.model.text import Masks, TextOutput
from dgemma_jax.sampling.accept import accept
from dgemma_jax.training.corruption import corrupt, noise_levels, shift_ends
from dgemma_jax.training.head import drawn_tokens, soft_embeddings, token_losses

OWN_BOUNDS = (0.003, 10.0)
"""Entropy bounds in nats, drawn evenly by their logarithm, of the sampler's step that makes a canvas the model's own:
from a sampler that keeps almost nothing but certainties to one that keeps most of a wrong answer."""


class Pictures(NamedTuple):
    """The images of a batch, as many for each row.

    patches_BINP: float in [0, 1] [batch, images, patches, values]; position_BIN2: int (x, y), -1 for padding.
    soft_BS: for each token of the row the number of its soft token, all images counted through; -1 for words.
    """

    patches_BINP: jax.Array
    position_BIN2: jax.Array
    soft_BS: jax.Array


class Batch(NamedTuple):
    """Rows of clean tokens: prompt, answer, end-of-sequence fill to a whole canvas, padding.

    tokens_BS: int [batch, length]. prefix_B: prompt tokens. answer_B: answer tokens without fill. blocks_B: canvases.
    mistaken_BS: the same rows with wrong answers, of those that have one.
    """

    tokens_BS: jax.Array
    prefix_B: jax.Array
    answer_B: jax.Array
    blocks_B: jax.Array
    pictures: Pictures | None = None
    mistaken_BS: jax.Array | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """Weights and switches. `blocks`: canvases of the longest answer in the batch. `copies`: noise copies of each.

    `own`: of the canvases that are conditioned on a first prediction, the share whose tokens come from it as well: its
    surest are drawn, the others random, as one step of the sampler leaves them. Uniform noise never shows the model
    the mistakes that it makes itself, such as the end of a word twice; these do. The published recipe has none.
    `shifted`: the share of all canvases whose end is moved before the noise (`shift_ends`); the recipe has none.
    `mistaken`: of the canvases of rows with a wrong answer, the share that holds that before the noise; nor has this.
    `remat` computes each layer again in the backward pass instead of keeping what is inside it.
    """

    blocks: int
    copies: int = 1
    t_min: float = 1e-3
    next_token_weight: float = 1.0
    prompt_weight: float = 0.3
    fill_weight: float = 1.0
    balance_weight: float = 0.0
    own: float = 0.0
    shifted: float = 0.0
    mistaken: float = 0.0
    remat: bool = False


class Metrics(NamedTuple):
    """Means over what each loss counts, in nats; `accuracy` of single denoising predictions; `balance` is 1 at best."""

    loss: jax.Array
    denoising: jax.Array
    next_token: jax.Array
    balance: jax.Array
    accuracy: jax.Array


def loss(model: DiffusionGemma, batch: Batch, key: jax.Array, objective: Objective) -> tuple[jax.Array, Metrics]:
    """The scalar to minimise, and what it is made of.

    Raises:
        ValueError: an odd number of rows, half of which are to be conditioned on a first prediction; or pictures
            for a model without a vision tower.
    """
    B, S = batch.tokens_BS.shape
    if B % 2:
        raise ValueError(f"a batch needs an even number of rows, found {B}")
    position_BS = jnp.broadcast_to(jnp.arange(S)[None], (B, S))
    clean = model.read(batch.tokens_BS, position_BS, None, _soft_tokens(model, batch), remat=objective.remat)
    next_token = _next_token_loss(model, clean.x_BTD, batch, objective)
    keys = jax.random.split(key, 5)
    canvases = _noisy_canvases(model, batch, keys[:4], objective)
    output = _denoise(model, clean.key_values, canvases, keys[4], objective)
    nll_BR, right_BR = token_losses(model.text, output.x_BTD, canvases.target_BR)
    denoising = _mean(nll_BR, canvases.weight_BR)
    balance = _balance(clean.routings + output.routings)
    total = denoising + objective.next_token_weight * next_token + objective.balance_weight * balance
    return total, Metrics(total, denoising, next_token, balance, _mean(right_BR, canvases.weight_BR))


def _soft_tokens(model: DiffusionGemma, batch: Batch) -> jax.Array | None:
    """Every image's soft tokens at their places in the rows: [B, S, D]; other places mean nothing."""
    pictures = batch.pictures
    if pictures is None:
        return None
    if model.vision is None:
        raise ValueError("the batch holds pictures, but the model has no vision tower")
    B, images = pictures.patches_BINP.shape[:2]
    flat = [x.reshape(B * images, *x.shape[2:]) for x in (pictures.patches_BINP, pictures.position_BIN2)]
    soft_IMD = model.vision(*flat).soft_IMD
    soft_BZD = soft_IMD.reshape(B, -1, soft_IMD.shape[-1])
    return jnp.take_along_axis(soft_BZD, jnp.maximum(pictures.soft_BS, 0)[..., None], axis=1)


class _Canvases(NamedTuple):
    """All noisy canvases of a batch side by side: what they hold, should hold, stand at, count and see."""

    noisy_BR: jax.Array
    target_BR: jax.Array
    position_BR: jax.Array
    weight_BR: jax.Array
    masks: dict[LayerType, Masks]


def _noisy_canvases(model: DiffusionGemma, batch: Batch, keys: jax.Array, objective: Objective) -> _Canvases:
    B, S = batch.tokens_BS.shape
    L, text = model.config.canvas_length, model.config.text
    block_R, copy_R = canvas_layout(objective.blocks, objective.copies, L)
    position_BR = batch.prefix_B[:, None] + (block_R * L + jnp.arange(len(block_R)) % L)[None]
    target_BR = _at(batch.tokens_BS, position_BR)
    t_BR = jnp.repeat(noise_levels(keys[0], (B, objective.blocks * objective.copies), objective.t_min), L, axis=1)
    return _Canvases(
        corrupt(keys[1], _written(batch, position_BR, block_R, keys[2:], L, objective), t_BR, text.vocab_size),
        target_BR,
        position_BR,
        _canvas_weights(position_BR, block_R, batch, objective),
        block_diffusion_masks(batch.prefix_B, block_R, copy_R, L, S, text.sliding_window),
    )


def _at(tokens_BS: jax.Array, position_BR: jax.Array) -> jax.Array:
    return jnp.take_along_axis(tokens_BS, jnp.minimum(position_BR, tokens_BS.shape[1] - 1), axis=1)


def _written(
    batch: Batch, position_BR: jax.Array, block_R: jax.Array, keys: jax.Array, L: int, objective: Objective
) -> jax.Array:
    """What the canvases hold before the noise: the right tokens, but for mistakes and moved ends."""
    written_BR = _at(batch.tokens_BS, position_BR)
    (B, R), C = written_BR.shape, written_BR.shape[1] // L
    if objective.mistaken and batch.mistaken_BS is not None:
        chosen_BC = jax.random.uniform(keys[0], (B, C)) < objective.mistaken
        written_BR = jnp.where(jnp.repeat(chosen_BC, L, axis=1), _at(batch.mistaken_BS, position_BR), written_BR)
    if objective.shifted:
        filled_BC = jnp.clip(batch.answer_B[:, None] - block_R[None, ::L] * L, 1, L)
        written_BCL = shift_ends(keys[1], written_BR.reshape(B, C, L), filled_BC, objective.shifted)
        written_BR = written_BCL.reshape(B, R)
    return written_BR


def _denoise(
    model: DiffusionGemma,
    key_values: tuple[KeyValue, ...],
    canvases: _Canvases,
    key: jax.Array,
    objective: Objective,
) -> TextOutput:
    """The decoder pass; every second row is conditioned on a first pass of its own."""
    past, half = _every_second((key_values, canvases))
    first = _decode(model, past, half, None, objective)
    soft_HRD = jax.lax.stop_gradient(soft_embeddings(model.text, first.x_BTD))
    soft_BRD = _alternate(soft_HRD, jnp.zeros_like(soft_HRD))
    if objective.own:
        own_HR = own_canvases(model, first.x_BTD, half.noisy_BR, key, objective.own)
        canvases = canvases._replace(noisy_BR=_alternate(own_HR, canvases.noisy_BR[1::2]))
    return _decode(model, key_values, canvases, soft_BRD, objective)


def _alternate(even: jax.Array, odd: jax.Array) -> jax.Array:
    """Rows of both by turns. Neighbours stay so: each device of a data-parallel run has both of a pair."""
    return jnp.stack([even, odd], axis=1).reshape(-1, *even.shape[1:])


def own_canvases(
    model: DiffusionGemma, x_HRD: jax.Array, noisy_HR: jax.Array, key: jax.Array, share: float
) -> jax.Array:
    """A share of the canvases as one step of the sampler leaves them, given what it was predicted of; the others."""
    H, L = len(noisy_HR), model.config.canvas_length
    keys = jax.random.split(key, 4)
    drawn_HR, entropy_HR = drawn_tokens(model.text, x_HRD, jax.random.uniform(keys[0], noisy_HR.shape))
    entropy_CL = entropy_HR.reshape(-1, L)
    low, high = (math.log(bound) for bound in OWN_BOUNDS)
    bound_C = jnp.exp(jax.random.uniform(keys[1], entropy_CL.shape[:1], minval=low, maxval=high))
    kept_HR = accept(entropy_CL, bound_C).reshape(H, -1)
    random_HR = jax.random.randint(keys[2], noisy_HR.shape, 0, model.config.text.vocab_size, noisy_HR.dtype)
    own_C = jax.random.uniform(keys[3], entropy_CL.shape[:1]) < share
    own_HR = jnp.repeat(own_C, L).reshape(H, -1)
    return jnp.where(own_HR, jnp.where(kept_HR, drawn_HR, random_HR), noisy_HR)


def _every_second(tree: tuple) -> tuple:
    """The even rows of every array; masks that all rows share stay as they are."""
    return jax.tree.map(lambda x: x if len(x) == 1 else x.reshape(len(x) // 2, 2, *x.shape[1:])[:, 0], tree)


def _decode(
    model: DiffusionGemma,
    key_values: tuple[KeyValue, ...],
    canvases: _Canvases,
    soft_BRD: jax.Array | None,
    objective: Objective,
) -> TextOutput:
    x_BRD = model.text.self_conditioning(model.text.embed(canvases.noisy_BR), soft_BRD)
    return model.text.run(x_BRD, canvases.position_BR, key_values, canvases.masks, "decoder", remat=objective.remat)


def canvas_layout(blocks: int, copies: int, canvas_length: int) -> tuple[jax.Array, jax.Array]:
    """For each of the R noisy tokens its canvas and its noise copy."""
    canvas_R = jnp.repeat(jnp.arange(blocks * copies), canvas_length)
    return canvas_R % blocks, canvas_R // blocks


def _canvas_weights(position_BR: jax.Array, block_R: jax.Array, batch: Batch, objective: Objective) -> jax.Array:
    fill_BR = position_BR >= (batch.prefix_B + batch.answer_B)[:, None]
    weight_BR = jnp.where(fill_BR, objective.fill_weight, 1.0)
    return jnp.where(block_R[None] < batch.blocks_B[:, None], weight_BR, 0.0)


def _next_token_loss(model: DiffusionGemma, x_BSD: jax.Array, batch: Batch, objective: Objective) -> jax.Array:
    position_1S = jnp.arange(1, x_BSD.shape[1])[None]
    end_B1 = (batch.prefix_B + batch.blocks_B * model.config.canvas_length)[:, None]
    weight_BS = jnp.where(position_1S < batch.prefix_B[:, None], objective.prompt_weight, 1.0)
    weight_BS = jnp.where(position_1S >= (batch.prefix_B + batch.answer_B)[:, None], objective.fill_weight, weight_BS)
    weight_BS = jnp.where(position_1S < end_B1, weight_BS, 0.0)
    if batch.pictures is not None:  # what an image shows is not for the words before it to predict
        weight_BS = jnp.where(batch.pictures.soft_BS[:, 1:] < 0, weight_BS, 0.0)
    nll_BS, _ = token_losses(model.text, x_BSD[:, :-1], batch.tokens_BS[:, 1:])
    return _mean(nll_BS, weight_BS)


def _mean(value: jax.Array, weight: jax.Array) -> jax.Array:
    return jnp.sum(value * weight) / jnp.maximum(jnp.sum(weight), 1.0)


def _balance(routings: tuple[Routing, ...]) -> jax.Array:
    """How evenly experts are used, averaged over layers: E * sum of (share of tokens * mean probability); 1 is even."""
    values = []
    for routing in routings:
        E = routing.probability_AE.shape[1]
        chosen_AE = jnp.sum(jax.nn.one_hot(routing.expert_AX, E), axis=1)
        share_E = jnp.mean(chosen_AE, axis=0) / routing.expert_AX.shape[1]
        values.append(E * jnp.sum(share_E * jnp.mean(routing.probability_AE, axis=0)))
    return jnp.mean(jnp.stack(values))
