"""The jitted programs of the engine, beside those of `dgemma_jax.compiled`: each compiled once per shape.

Reading a prompt and committing a canvas are `compiled.encode`: over one row, prompts read together, or a whole batch.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dgemma_jax import cache as kv
from dgemma_jax.compiled import OVERLAPPED, Structure
from dgemma_jax.config import SLIDING, ModelConfig
from dgemma_jax.model.attention import KeyValue
from dgemma_jax.model.diffusion_gemma import DiffusionGemma
from dgemma_jax.sampling import denoise as loop
from dgemma_jax.sampling.draws import KeyedDraws, row_keys
from dgemma_jax.sampling.logprobs import Logprobs, logprobs
from dgemma_jax.sampling.settings import Settings
from dgemma_jax.sharding import pin, pin_cache, pin_rows

T = TypeVar("T")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
    """What the host decides about each row of the batch: settings, seed and canvas (counted from 0) of its request,
    whether it starts a canvas now, and whether it takes part."""

    settings: Settings
    seed_B2: jax.Array
    canvas_B: jax.Array
    fresh_B: jax.Array
    running_B: jax.Array


class Denoised(NamedTuple):
    """Which rows have come to the end of their canvas, after how many steps, and which are still numbers."""

    state: loop.State
    done_B: jax.Array
    step_B: jax.Array
    finite_B: jax.Array


@functools.partial(jax.jit, static_argnums=(0, 6), donate_argnums=3, compiler_options=OVERLAPPED)
def denoise(
    structure: Structure,
    numbers: list[jax.Array],
    cache: kv.Cache,
    state: loop.State,
    rows: Rows,
    most: jax.Array,
    apart: bool,
) -> Denoised:
    """Steps of all running rows, until one of them is done or `most` steps are taken. The cache is only read.

    `apart`: each row is computed alone, in the shapes of a batch of one; else all rows are one batch.
    """
    model = structure.model(numbers)
    draws = _draws(model.config, rows)
    state = _choose(rows.fresh_B, loop.start(model, draws, rows.settings), state)
    state = dataclasses.replace(state, done_B=state.done_B | ~rows.running_B)

    def step(state: loop.State) -> loop.State:
        if apart:
            return _step_apart(model, cache, state, rows)
        return loop.step(model, cache, state, rows.settings, draws)

    def go_on(carry: tuple[jax.Array, loop.State]) -> jax.Array:
        return (carry[0] < most) & ~jnp.any(carry[1].done_B & rows.running_B)

    _, state = jax.lax.while_loop(go_on, lambda carry: (carry[0] + 1, step(carry[1])), (jnp.int32(0), state))
    state = pin_rows(state, model.text.mesh)  # a program is compiled anew for what lies elsewhere
    # Once not a number, a canvas stays so: the next step reads the prediction. One look at the end is enough.
    finite_B = jnp.all(jnp.isfinite(state.soft_BLD.astype(jnp.float32)), axis=(1, 2))
    return Denoised(state, state.done_B & rows.running_B, state.step_B, finite_B)


def _draws(config: ModelConfig, rows: Rows) -> KeyedDraws:
    return KeyedDraws(row_keys(rows.seed_B2, rows.canvas_B), config.canvas_length, config.text.vocab_size)


def _choose(flag_B: jax.Array, yes: loop.State, no: loop.State) -> loop.State:
    return jax.tree.map(lambda y, n: jnp.where(flag_B.reshape(-1, *(1,) * (y.ndim - 1)), y, n), yes, no)


def _step_apart(model: DiffusionGemma, cache: kv.Cache, state: loop.State, rows: Rows) -> loop.State:
    """One step, row after row; rows that are done cost nothing."""

    def one(row: jax.Array, state: loop.State) -> loop.State:
        def step(state: loop.State) -> loop.State:
            mine = row_of(rows, row)
            new = loop.step(model, row_of(cache, row), row_of(state, row), mine.settings, _draws(model.config, mine))
            return jax.tree.map(lambda x, n: jax.lax.dynamic_update_slice_in_dim(x, n, row, axis=0), state, new)

        return jax.lax.cond(state.done_B[row], lambda state: state, step, state)

    return jax.lax.fori_loop(0, len(state.done_B), one, state)


def row_of(tree: T, row: jax.Array) -> T:
    """One row of everything, as a batch of one."""
    return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, row, 1, axis=0), tree)


@functools.partial(jax.jit, static_argnums=2)
def take(cache: kv.Cache, row: jax.Array, mesh: Mesh | None) -> kv.Cache:
    """A row of the batch's cache, copied out."""
    return pin_cache(row_of(cache, row), mesh)


@functools.partial(jax.jit, donate_argnums=0, static_argnums=3)
def put(cache: kv.Cache, one: kv.Cache, row: jax.Array, mesh: Mesh | None) -> kv.Cache:
    """Writes a whole row over one of the batch's, in place: nothing of the old one stays."""
    put_in = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=row, axis=0)
    return pin_cache(jax.tree.map(put_in, cache, one), mesh)


@functools.partial(jax.jit, static_argnums=1)
def together(caches: Sequence[kv.Cache], mesh: Mesh | None) -> kv.Cache:
    """Caches of equal capacity as one, their rows in order, copied."""
    return pin_cache(jax.tree.map(lambda *rows: jnp.concatenate(rows), *caches), mesh)


@functools.partial(jax.jit, static_argnums=2)
def pick(tree: T, order_B: np.ndarray, mesh: Mesh | None = None) -> T:
    """The named rows of everything, copied."""
    return pin_rows(jax.tree.map(lambda x: x[order_B], tree), mesh)


@functools.partial(jax.jit, static_argnums=2)
def _pick_layer(layer: KeyValue, order_B: np.ndarray, mesh: Mesh | None) -> KeyValue:
    return KeyValue(*(_pin(x[order_B], mesh) for x in layer))


@functools.partial(jax.jit, static_argnums=(1, 2))
def _fit(layer: KeyValue, slots: int, mesh: Mesh | None) -> KeyValue:
    def fit(x_BKSC: jax.Array) -> jax.Array:
        missing = max(0, slots - x_BKSC.shape[2])
        return _pin(jnp.pad(x_BKSC[:, :, :slots], ((0, 0), (0, 0), (0, missing), (0, 0))), mesh)

    return KeyValue(*(fit(x) for x in layer))


def _pin(x_BKSC: jax.Array, mesh: Mesh | None) -> jax.Array:
    return pin(x_BKSC, mesh, "rows", "kv_heads", "slots", "head")


def arrange(
    cache: kv.Cache,
    order: Sequence[int],
    capacity: int,
    window: int,
    *,
    consume: bool = False,
    mesh: Mesh | None = None,
) -> kv.Cache:
    """New rows, each a copy of the named old one, with room for `capacity` positions, more or fewer than before.

    A ring changes its size only between capacities below the window, where it has never wrapped. `consume`: the old
    layers are deleted one by one, so that never more than one of them is there twice.
    """
    order_B = np.asarray(order, np.int32)
    same_rows = list(order) == list(range(len(cache.length_B)))
    layers = []
    for kind, layer in zip(cache.layer_types, cache.layers, strict=True):
        slots = min(capacity, window) if kind == SLIDING else capacity
        same_slots = slots == layer.key_BKSC.shape[2]
        # Two small programs rather than one for every pair of shapes: few enough to be compiled ahead.
        picked = layer if same_rows and not same_slots else _pick_layer(layer, order_B, mesh)
        layers.append(picked if same_slots else _fit(picked, slots, mesh))
        if consume:
            for x in layer:
                x.delete()
    return kv.Cache(tuple(layers), pick(cache.length_B, order_B, mesh), cache.layer_types)


@functools.partial(jax.jit, static_argnums=0)
def blank(structure: Structure, numbers: list[jax.Array], rows: Rows) -> loop.State:
    """States that mean nothing, of the right shapes."""
    model = structure.model(numbers)
    return pin_rows(loop.start(model, _draws(model.config, rows), rows.settings), model.text.mesh)


@functools.partial(jax.jit, static_argnums=0)
def choose(
    structure: Structure,
    numbers: list[jax.Array],
    state: loop.State,
    row: jax.Array,
    position: jax.Array,
    allowed_V: jax.Array,
) -> jax.Array:
    """The likeliest of the allowed tokens at a position of a row's canvas, by its latest prediction."""
    one = row_of(state, row)
    assert one.x_BLD is not None, "the settings of every row keep the hidden states"
    text = structure.model(numbers).text
    logits_BTV = text.logits(jax.lax.dynamic_slice_in_dim(one.x_BLD, position, 1, axis=1))
    return jnp.argmax(jnp.where(allowed_V, pin(logits_BTV, text.mesh, "rows", "canvas", "tokens")[0, 0], -jnp.inf))


@functools.partial(jax.jit, static_argnums=0)
def score(
    structure: Structure, numbers: list[jax.Array], state: loop.State, row: jax.Array, canvas_BL: jax.Array
) -> Logprobs:
    """Log-probabilities of a canvas of one row, by its latest prediction."""
    one = row_of(state, row)
    assert one.x_BLD is not None, "the settings of every row keep the hidden states"
    return logprobs(structure.model(numbers).text, one.x_BLD, canvas_BL)
