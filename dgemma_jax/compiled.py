"""The jitted programs: what runs on the device, each compiled once per shape.

They take the model as structure and parameters, so that nothing of the module is traced at call time.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from dgemma_jax import cache as kv
from dgemma_jax.config import TextConfig
from dgemma_jax.sampling import denoise as loop
from dgemma_jax.sampling import head
from dgemma_jax.sampling.draws import Draws, KeyedDraws, row_keys
from dgemma_jax.sampling.logprobs import Logprobs, logprobs
from dgemma_jax.sampling.settings import Settings
from dgemma_jax.sharding import everywhere, pin_cache


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def encode(
    graphdef: nnx.GraphDef,
    params: nnx.State,
    cache: kv.Cache,
    tokens_BT: jax.Array,
    count_B: jax.Array,
    soft_BTD: jax.Array | None = None,
) -> kv.Cache:
    """See `DiffusionGemma.encode`. The cache is donated: it is written in place and must not be used again."""
    return nnx.merge(graphdef, params).encode(cache, tokens_BT, count_B, soft_BTD)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def commit(
    graphdef: nnx.GraphDef, params: nnx.State, cache: kv.Cache, canvas_BL: jax.Array, ended_B: jax.Array
) -> kv.Cache:
    """Reads a canvas of every row, unless all rows have ended. The cache is donated, as in `encode`."""
    model, length = nnx.merge(graphdef, params), jnp.full(len(canvas_BL), canvas_BL.shape[1], jnp.int32)
    return jax.lax.cond(
        jnp.all(ended_B),
        lambda cache: cache,
        lambda cache: model.encode(cache, canvas_BL, length, None),
        cache,
    )


@jax.jit
def ended(canvas_BL: jax.Array, before_B: jax.Array | None, ends_N: jax.Array) -> jax.Array:
    """Which rows have an end token now or had one before."""
    now_B = jnp.any(jnp.isin(canvas_BL, ends_N), axis=1)
    return now_B if before_B is None else now_B | before_B


@functools.partial(jax.jit, static_argnums=0)
def soft_tokens(
    graphdef: nnx.GraphDef, params: nnx.State, patches_INP: jax.Array, positions_IN2: jax.Array
) -> jax.Array:
    """Images through the vision tower: all their soft tokens in order, [I * M, D], padding last."""
    soft = nnx.merge(graphdef, params).vision(patches_INP, positions_IN2)
    order_Z = jnp.argsort(~soft.real_IM.reshape(-1))  # stable: the real ones first, in order
    return soft.soft_IMD.reshape(-1, soft.soft_IMD.shape[-1])[order_Z]


@functools.partial(jax.jit, static_argnums=0)
def denoise_logits(
    graphdef: nnx.GraphDef,
    params: nnx.State,
    cache: kv.Cache,
    canvas_BL: jax.Array,
    previous_logits_BLV: jax.Array | None,
) -> jax.Array:
    """One denoising pass: float32 logits [B, L, V]."""
    model = nnx.merge(graphdef, params)
    soft_BLD = None if previous_logits_BLV is None else head.soft_embedding(model.text, previous_logits_BLV)
    return model.text.logits(model.denoise(cache, canvas_BL, soft_BLD))


class Denoised(NamedTuple):
    """One canvas of every row: its tokens, the steps it took, and log-probabilities where the settings ask for them."""

    canvas_BL: jax.Array
    step_B: jax.Array
    logprobs: Logprobs | None = None


@functools.partial(jax.jit, static_argnums=0)
def denoise_canvas(
    graphdef: nnx.GraphDef,
    params: nnx.State,
    cache: kv.Cache,
    settings: Settings,
    seed_B2: jax.Array,
    canvas_index_B: jax.Array,
) -> Denoised:
    """One canvas of every row, from noise to its end: the argmax of its last prediction."""
    model = nnx.merge(graphdef, params)
    config = model.config
    draws = KeyedDraws(row_keys(seed_B2, canvas_index_B), config.canvas_length, config.text.vocab_size)
    state = loop.denoise(model, cache, settings, draws)
    # After the loop, so that the vocabulary is ranked once a canvas and not once a step.
    scored = None if state.x_BLD is None else logprobs(model.text, state.x_BLD, state.argmax_BL)
    return everywhere(Denoised(state.argmax_BL, state.step_B, scored), model.text.mesh)


@functools.partial(jax.jit, static_argnums=0)
def denoise_step(
    graphdef: nnx.GraphDef, params: nnx.State, cache: kv.Cache, state: loop.State, settings: Settings, draws: Draws
) -> loop.State:
    """A single step, for those who want to look between steps."""
    return loop.step(nnx.merge(graphdef, params), cache, state, settings, draws)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def empty(config: TextConfig, rows: int, capacity: int, dtype: jnp.dtype, mesh: Mesh | None) -> kv.Cache:
    """See `cache.empty`. Each device makes its own part."""
    return pin_cache(kv.empty(config, rows, capacity, dtype), mesh)


@functools.partial(jax.jit, static_argnums=(1, 2))
def grow(cache: kv.Cache, capacity: int, window: int) -> kv.Cache:
    """See `cache.grow`."""
    return kv.grow(cache, capacity, window)
