"""Routing as two kernels on GPUs: of a canvas the numbers are few, and what a dozen of XLA's kernels cost is starts.

    scores -> kernel 1, a program to a few tokens: softmax, top-k, weights, how many chose each expert
           -> kernel 2, a program to an expert: its blocks, their tokens, the rows of its choices

Their plain twins are `router.choose_plainly` and `moe_grouped.blocks_plainly`. Written in Pallas
(https://docs.jax.dev/en/latest/pallas) for its Triton backend; elsewhere they can be interpreted.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from dgemma_jax.model import gpu

TOKENS, CHOOSING_WARPS = 4, 4
"""Tokens of a program of kernel 1, and its threads in 32. A row of 128 experts lies in 32 threads. These numbers and
those of kernel 2 were measured on an H200: docs/performance.md."""
CHOICES, TILES, CUTTING_WARPS = 8192, 64, 4
"""Of kernel 2: choices that are looked through and counts of kernel 1 that are summed at a time, and threads in 32."""
LEAST_EXPERTS = 16


class Choice(NamedTuple):
    """Chosen experts of each token, their weights, and how many tokens of each program's chose each expert."""

    expert_AX: jax.Array
    weight_AX: jax.Array
    count_YE: jax.Array


class Blocks(NamedTuple):
    """Blocks of rows of one expert.

    token_Z: the token of each row, A where there is none, anything in blocks that are not used. expert_J: of each
    block; E where the block is not used. row_AX: where the row of each choice lies; out of bounds where it has none.
    """

    token_Z: jax.Array
    expert_J: jax.Array
    row_AX: jax.Array


def fits(E: int, X: int) -> bool:
    """Whether a router's sizes are such, on a device that runs the kernels. Few experts all run: see `moe.py`."""
    return gpu.runs_kernels() and E.bit_count() == 1 and max(4 * X, LEAST_EXPERTS - 1) < E


def choose(score_AE: jax.Array, scale_E: jax.Array, X: int) -> Choice:
    """As `router.choose_plainly`, and counts."""
    A, E = score_AE.shape
    tiles = pl.cdiv(A, TOKENS)
    call = pl.pallas_call(
        functools.partial(_choose, A, E, X),
        out_shape=(
            jax.ShapeDtypeStruct((A, X), jnp.int32),
            jax.ShapeDtypeStruct((A, X), jnp.float32),
            jax.ShapeDtypeStruct((tiles, E), jnp.int32),
        ),
        grid=(tiles,),
        compiler_params=plt.CompilerParams(num_warps=CHOOSING_WARPS),
        interpret=jax.default_backend() != "gpu",
        name="routing",
    )
    return Choice(*call(score_AE, scale_E))


def count(expert_AX: jax.Array, E: int) -> jax.Array:
    """The counts of `Choice`, plainly."""
    A, X = expert_AX.shape
    tiles = pl.cdiv(A, TOKENS)
    expert_YZ = jnp.pad(expert_AX, ((0, tiles * TOKENS - A), (0, 0)), constant_values=E).reshape(tiles, TOKENS * X)
    return jnp.sum(jax.nn.one_hot(expert_YZ, E, dtype=jnp.int32), axis=1)


def _choose(
    A: int, E: int, X: int, score_ref: Any, scale_ref: Any, expert_ref: Any, weight_ref: Any, count_ref: Any
) -> None:
    """The experts of a few tokens."""
    tile = pl.program_id(0)
    token_R, index_E = tile * TOKENS + jnp.arange(TOKENS, dtype=jnp.int32), jnp.arange(E, dtype=jnp.int32)
    there_R = token_R < A
    place = (token_R[:, None], index_E[None])
    score_RE = plt.load(score_ref.at[place], mask=there_R[:, None], other=0)
    left_RE = _softmax(score_RE.astype(jnp.float32))
    # What is chosen lies in the first columns of as many as there are experts: it stays in the threads that chose it.
    expert_RE, weight_RE = jnp.zeros((TOKENS, E), jnp.int32), jnp.zeros((TOKENS, E), jnp.float32)
    total_R = jnp.zeros(TOKENS, jnp.float32)
    for choice in range(X):
        # The first of equal ones, as `top_k`.
        expert_R, weight_R = jax.lax.argmax(left_RE, 1, jnp.int32), jnp.max(left_RE, axis=1)
        expert_RE = jnp.where(index_E[None] == choice, expert_R[:, None], expert_RE)
        weight_RE = jnp.where(index_E[None] == choice, weight_R[:, None], weight_RE)
        total_R += weight_R
        left_RE = jnp.where(index_E[None] == expert_R[:, None], -1.0, left_RE)
    chosen_RE = there_R[:, None] & (index_E[None] < X)
    scale_RE = plt.load(scale_ref.at[expert_RE], mask=chosen_RE, other=0).astype(jnp.float32)
    plt.store(expert_ref.at[place], expert_RE, mask=chosen_RE)
    plt.store(weight_ref.at[place], weight_RE / total_R[:, None] * scale_RE, mask=chosen_RE)
    picks_RE = (left_RE < 0) & there_R[:, None]
    plt.store(count_ref.at[tile, index_E], jnp.sum(picks_RE.astype(jnp.int32), axis=0))


def _softmax(score_RE: jax.Array) -> jax.Array:
    """Probabilities of experts; of a token with a score that is no number, zeros: it must have as many experts too."""
    odds_RE = jnp.exp(score_RE - jnp.max(score_RE, axis=1)[:, None])
    probability_RE = odds_RE / jnp.sum(odds_RE, axis=1)[:, None]
    return jnp.where(probability_RE >= 0, probability_RE, 0.0)


class Sizes(NamedTuple):
    """Tokens, choices of each, experts, the first kernel's programs, rows of a block, and blocks that there may be."""

    A: int
    X: int
    E: int
    tiles: int
    rows: int
    most: int


def cut(expert_AX: jax.Array, count_YE: jax.Array, rows: int, most: int) -> Blocks:
    """As `moe_grouped.blocks_plainly`, where all experts are here and `choose` has counted their tokens."""
    (A, X), (tiles, E) = expert_AX.shape, count_YE.shape
    call = pl.pallas_call(
        functools.partial(_cut, Sizes(A, X, E, tiles, rows, most)),
        out_shape=tuple(jax.ShapeDtypeStruct((size,), jnp.int32) for size in (most * rows, most, A * X)),
        grid=(E,),
        compiler_params=plt.CompilerParams(num_warps=CUTTING_WARPS),
        interpret=jax.default_backend() != "gpu",
        name="blocks",
    )
    token_Z, expert_J, row_Z = call(expert_AX.reshape(-1), count_YE)
    return Blocks(token_Z, expert_J, row_Z.reshape(A, X))


def _cut(sizes: Sizes, expert_ref: Any, count_ref: Any, token_ref: Any, block_ref: Any, row_ref: Any) -> None:
    """The blocks of one expert; of the last one also those behind, which are not used."""
    own, index_E = pl.program_id(0), jnp.arange(sizes.E, dtype=jnp.int32)
    # Asked for before the counts are: they come together.
    first_Z = _choices(sizes, expert_ref, jnp.int32(0))
    count_E = _total(sizes, count_ref)
    blocks_E = (count_E + (sizes.rows - 1)) // sizes.rows
    first = jnp.sum(jnp.where(index_E < own, blocks_E, 0))
    count = jnp.sum(jnp.where(index_E == own, count_E, 0))
    end = first + (count + (sizes.rows - 1)) // sizes.rows
    _place(sizes, own, first * sizes.rows, first_Z, expert_ref, token_ref, row_ref)
    row_R = first * sizes.rows + count + _lanes(sizes.rows)
    plt.store(token_ref.at[row_R], jnp.full(row_R.shape, sizes.A, jnp.int32), mask=row_R < end * sizes.rows)
    # A token picks an expert once: so many blocks are enough for all of them.
    block_J = first + _lanes(pl.cdiv(sizes.A, sizes.rows))
    plt.store(block_ref.at[block_J], jnp.full(block_J.shape, own, jnp.int32), mask=block_J < end)

    @pl.when(own == sizes.E - 1)
    def _() -> None:
        index_J = _lanes(sizes.most)
        unused_J = (index_J >= end) & (index_J < sizes.most)
        plt.store(block_ref.at[index_J], jnp.full(index_J.shape, sizes.E, jnp.int32), mask=unused_J)


def _place(
    sizes: Sizes, own: jax.Array, row: jax.Array, first_Z: jax.Array, expert_ref: Any, token_ref: Any, row_ref: Any
) -> None:
    """Gives the choices of this expert rows from `row` on, those of earlier tokens first. `first_Z`: the first part."""
    size = len(first_Z)

    def place(part: jax.Array, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        row, expert_Z = state
        next_Z = _choices(sizes, expert_ref, part + 1)
        index_Z, mine_Z = part * size + _lanes(size), expert_Z == own
        # Out of bounds for the others: interpreted, a masked store writes what was there before.
        row_Z = jnp.where(mine_Z, row - 1 + jax.lax.cumsum(mine_Z.astype(jnp.int32)), sizes.most * sizes.rows)
        plt.store(row_ref.at[index_Z], row_Z, mask=mine_Z)
        plt.store(token_ref.at[row_Z], index_Z // sizes.X, mask=mine_Z)
        return row + jnp.sum(mine_Z.astype(jnp.int32)), next_Z

    jax.lax.fori_loop(0, pl.cdiv(sizes.A * sizes.X, size), place, (row, first_Z))


def _choices(sizes: Sizes, expert_ref: Any, part: jax.Array) -> jax.Array:
    """The experts of some choices; E behind the last."""
    lane_Z = _lanes(min(sizes.A * sizes.X, CHOICES))
    index_Z = part * len(lane_Z) + lane_Z
    return plt.load(expert_ref.at[index_Z], mask=index_Z < sizes.A * sizes.X, other=sizes.E)


def _total(sizes: Sizes, count_ref: Any) -> jax.Array:
    """The counts of the first kernel's programs, summed."""
    index_E, lane_Y = jnp.arange(sizes.E, dtype=jnp.int32), _lanes(min(sizes.tiles, TILES))

    def add(part: jax.Array, total_E: jax.Array) -> jax.Array:
        tile_Y = part * len(lane_Y) + lane_Y
        place = count_ref.at[tile_Y[:, None], index_E[None]]
        return total_E + jnp.sum(plt.load(place, mask=(tile_Y < sizes.tiles)[:, None], other=0), axis=0)

    return jax.lax.fori_loop(0, pl.cdiv(sizes.tiles, len(lane_Y)), add, jnp.zeros(sizes.E, jnp.int32))


def _lanes(count: int) -> jax.Array:
    """Numbers from 0 on, at least as many: Triton's vectors are powers of two."""
    return jnp.arange(1 << (count - 1).bit_length(), dtype=jnp.int32)
