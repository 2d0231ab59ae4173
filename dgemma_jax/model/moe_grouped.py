"""Experts as two grouped kernels on NVIDIA GPUs: every block of rows reads the weights of its own expert, once.

    tokens sorted by expert, in blocks of rows of one expert
      -> kernel 1: rows gathered, both halves of gate_up, gelu(gate) * up      [J * R, F]
      -> kernel 2: down                                                         [J * R, D]
      -> each token gathers and sums its rows

Nothing is padded to the busiest expert, nothing is dropped, and the order of a token's sums does not depend on the
rest of a batch of one size. Quantised weights are widened in registers: int8, FP8 and int4 are read as they lie. The
kernels are written in Pallas (https://docs.jax.dev/en/latest/pallas) for its Triton backend; elsewhere they can be
interpreted.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from dgemma_jax.model.mlp import gelu
from dgemma_jax.model.quantized import FP8_UNIT, OFFSET, Quantized, fp8_by_bits
from dgemma_jax.model.router import Routing
from dgemma_jax.model.routing_kernels import Blocks, cut


class Cut(NamedTuple):
    """What one program of a kernel works on: rows of a block, outputs of a weight, and inputs read at a time."""

    rows: int
    outputs: int
    inputs: int


FEW, MANY = Cut(32, 64, 128), Cut(64, 128, 64)
"""For batches whose experts have at most 32 rows on average, and more. The experts of one canvas of the 26B have 16.
Weights are read less often where a block has more rows. Measured on an H200: docs/performance.md."""
OUTPUTS_OF_WARP, STAGES = 16, {128: 3, 64: 4}
"""Outputs to every 32 threads, and how many tiles of so many inputs are being read at a time."""
LEAST = 16
"""Of what a tensor core multiplies, in each direction."""


def grouped_blocks(x_AD: jax.Array, routing: Routing, gate_up_EFD: jax.Array, down_EDF: jax.Array) -> jax.Array:
    """As `moe.all_experts`.

    Raises:
        ValueError: sizes that do not divide into tiles of at least 16.
    """
    blocks = _blocks(routing, gate_up_EFD.shape[0])
    hidden_ZF = _run(x_AD, blocks.token_Z, blocks.expert_J, gate_up_EFD, gated=True)
    # What the first product made lies in blocks already.
    out_ZD = _run(hidden_ZF, jnp.arange(len(hidden_ZF), dtype=jnp.int32), blocks.expert_J, down_EDF, gated=False)
    # A choice of another device's expert has no row.
    out_AXD = jnp.take(out_ZD, blocks.row_AX, axis=0, mode="fill", fill_value=0).astype(jnp.float32)
    return jnp.sum(out_AXD * routing.weight_AX[..., None], axis=1).astype(x_AD.dtype)


def _blocks(routing: Routing, E: int) -> Blocks:
    """Cuts the choices into blocks."""
    A, X = routing.expert_AX.shape
    # Over all experts, of which a device may have some: then it has as many of the choices.
    everywhere = routing.probability_AE.shape[1]
    rows = (FEW if A * X / everywhere <= FEW.rows else MANY).rows
    most = A * X // rows + min(E, A * X)
    if routing.count_YE is not None and everywhere == E:
        return cut(routing.expert_AX, routing.count_YE, rows, most)
    return blocks_plainly(routing.expert_AX, E, rows, most)


def blocks_plainly(expert_AX: jax.Array, E: int, rows: int, most: int) -> Blocks:
    """By comparisons and a product: each is one kernel, where a sort is several."""
    A, X = expert_AX.shape
    expert_Z = expert_AX.reshape(-1)
    index_A, index_E = jnp.arange(A), jnp.arange(E)
    # A token picks an expert once: a choice's rank is the number of earlier tokens that picked it too.
    picks_AE = jnp.any(expert_AX[..., None] == index_E[None, None], axis=1)
    earlier_AA = (index_A[None] < index_A[:, None]).astype(jnp.bfloat16)
    rank_AE = jnp.einsum("ab,be->ae", earlier_AA, picks_AE.astype(jnp.bfloat16), preferred_element_type=jnp.float32)
    rank_AX = jnp.take_along_axis(rank_AE, expert_AX, axis=1, mode="clip").astype(jnp.int32)
    count_E = jnp.sum(picks_AE, axis=0, dtype=jnp.int32)
    blocks_E = (count_E + rows - 1) // rows
    end_E = jnp.sum(jnp.where(index_E[None] <= index_E[:, None], blocks_E[None], 0), axis=1, dtype=jnp.int32)
    expert_J = jnp.sum(end_E[None] <= jnp.arange(most)[:, None], axis=1, dtype=jnp.int32)
    first_Z = jnp.take(end_E - blocks_E, expert_Z, mode="fill", fill_value=most)
    row_Z = first_Z * rows + rank_AX.reshape(-1)
    token_Z = jnp.full(most * rows, A, jnp.int32)
    token_Z = token_Z.at[row_Z].set(jnp.arange(A * X) // X, mode="drop", unique_indices=True)
    # Once: XLA would find the rows again for every number that is gathered by them.
    return jax.lax.optimization_barrier(Blocks(token_Z, expert_J, row_Z.reshape(A, X)))


def supports(hidden: int, width: int) -> bool:
    """Whether experts of these sizes, full or quantised, can be cut into tiles."""
    return all(math.gcd(size // 2, LEAST) == LEAST for size in (hidden, width))


def _run(x_ZK: jax.Array, row_Z: jax.Array, expert_J: jax.Array, weight: Any, *, gated: bool) -> jax.Array:
    """One product over all blocks: the rows `row_Z` of `x` with the weights of their experts: [J * R, N]."""
    E, Y, K = weight.shape
    N, J = Y // 2 if gated else Y, len(expert_J)
    rows = len(row_Z) // J
    cut = FEW if rows == FEW.rows else MANY
    # Tiles that are being read lie in shared memory together: of float32 half as many inputs.
    outputs, inputs = math.gcd(N, cut.outputs), math.gcd(K, cut.inputs * 2 // x_ZK.dtype.itemsize)
    if isinstance(weight, Quantized) and weight.bits == 4 and (group := K // weight.scale.shape[-1]) < LEAST:
        raise ValueError(f"grouped_blocks needs groups of at least {LEAST} inputs with a scale, found {group}")
    if min(outputs, inputs) < LEAST:
        raise ValueError(f"grouped_blocks needs multiples of {LEAST}, found a matrix of {N} outputs and {K} inputs")
    tiling = Tiling(E, J, rows, outputs, inputs, K, N, len(x_ZK), gated)
    arrays, times = _parts(weight)
    call = pl.pallas_call(
        functools.partial(_kernel, tiling, times),
        out_shape=jax.ShapeDtypeStruct((len(row_Z), N), x_ZK.dtype),
        grid=(J * (N // outputs),),
        compiler_params=plt.CompilerParams(num_warps=outputs // OUTPUTS_OF_WARP, num_stages=STAGES.get(inputs, 3)),
        interpret=_interpreted(),
        name="experts",
    )
    return call(row_Z, expert_J, x_ZK, *arrays)


def _interpreted() -> bool:
    return jax.default_backend() != "gpu"


class Tiling(NamedTuple):
    """Sizes of a kernel: experts, blocks, rows of a block, outputs and inputs of a tile, all inputs, outputs, rows.

    `gated`: the weights have twice the outputs, of which those of the first half gate those of the second.
    """

    E: int
    J: int
    rows: int
    outputs: int
    inputs: int
    K: int
    N: int
    A: int
    gated: bool


Times = Callable[[Tiling, Any, jax.Array, Any, jax.Array, tuple[jax.Array, ...]], tuple[jax.Array, ...]]


def _kernel(tiling: Tiling, times: Times, row_ref: Any, expert_ref: Any, x_ref: Any, *refs: Any) -> None:
    """One tile of one block: of the gated product both halves, and what they make."""
    *weight_refs, out_ref = refs
    block, first, expert = _place(tiling, expert_ref)
    firsts = (first, tiling.N + first) if tiling.gated else (first,)

    @pl.when(expert < tiling.E)
    def _() -> None:
        row_R = plt.load(row_ref.at[pl.ds(block * tiling.rows, tiling.rows)])
        sums = times(tiling, x_ref, row_R, tuple(weight_refs), expert, firsts)
        out_RN = gelu(sums[0]) * sums[1] if tiling.gated else sums[0]
        place = out_ref.at[pl.ds(block * tiling.rows, tiling.rows), pl.ds(first, tiling.outputs)]
        plt.store(place, out_RN.astype(out_ref.dtype))


def _place(tiling: Tiling, expert_ref: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    """This program's block, its first output, and its expert. Blocks run first: those of one expert share a tile."""
    program = pl.program_id(0)
    block = program % tiling.J
    return block, program // tiling.J * tiling.outputs, plt.load(expert_ref.at[block])


def _parts(weight: Any) -> tuple[tuple[jax.Array, ...], Times]:
    """The arrays of a weight as the kernel reads them, and the function that multiplies with them."""
    if not isinstance(weight, Quantized):
        return (weight,), _times_full
    scale = weight.scale.astype(jnp.float32)
    if weight.bits == 4:
        return (weight.values, scale), _times_4_bits
    return (weight.values, scale * FP8_UNIT if weight.is_fp8 else scale), _times_8_bits


def _times_full(
    tiling: Tiling, x_ref: Any, row_R: jax.Array, refs: Any, expert: jax.Array, firsts: tuple[jax.Array, ...]
) -> tuple[jax.Array, ...]:
    """Rows of `x` times tiles of an expert's outputs from each of `firsts` on, widened: float32 [R, N] each."""
    (weight_ref,) = refs

    def add(index: jax.Array, sums: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        start = index * tiling.inputs
        x_RK = _rows(tiling, x_ref, row_R, start, tiling.inputs)
        return tuple(
            total_RN + _dot(x_RK, _widened(_tile(tiling, weight_ref, expert, first, start, tiling.inputs), x_RK.dtype))
            for total_RN, first in zip(sums, firsts, strict=True)
        )

    return jax.lax.fori_loop(0, tiling.K // tiling.inputs, add, _zeros(tiling, firsts))


def _times_8_bits(
    tiling: Tiling, x_ref: Any, row_R: jax.Array, refs: Any, expert: jax.Array, firsts: tuple[jax.Array, ...]
) -> tuple[jax.Array, ...]:
    """The same for eight bits, integers or floats: scaled at the end, floats by their unit too."""
    values_ref, scale_ref = refs
    sums = _times_full(tiling, x_ref, row_R, (values_ref,), expert, firsts)
    return tuple(
        total_RN * plt.load(scale_ref.at[expert, pl.ds(first, tiling.outputs)])[None]
        for total_RN, first in zip(sums, firsts, strict=True)
    )


def _times_4_bits(
    tiling: Tiling, x_ref: Any, row_R: jax.Array, refs: Any, expert: jax.Array, firsts: tuple[jax.Array, ...]
) -> tuple[jax.Array, ...]:
    """The same for four bits: a byte holds an input of the first half and one of the second, each group has a scale."""
    values_ref, scale_ref = refs
    half, groups = tiling.K // 2, scale_ref.shape[-1]
    size = tiling.K // groups

    def add(index: jax.Array, sums: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        start = index * size
        parts = [(_rows(tiling, x_ref, row_R, offset + start, size), offset // size + index) for offset in (0, half)]
        added = []
        for total_RN, first in zip(sums, firsts, strict=True):
            packed_NK = _tile(tiling, values_ref, expert, first, start, size).astype(jnp.int32)
            for (x_RK, group), number_NK in zip(parts, (packed_NK & 15, packed_NK >> 4), strict=True):
                scale_N = plt.load(scale_ref.at[expert, pl.ds(first, tiling.outputs), group])
                total_RN += _dot(x_RK, (number_NK - OFFSET).astype(x_RK.dtype)) * scale_N[None]
            added.append(total_RN)
        return tuple(added)

    return jax.lax.fori_loop(0, half // size, add, _zeros(tiling, firsts))


def _zeros(tiling: Tiling, firsts: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    return tuple(jnp.zeros((tiling.rows, tiling.outputs), jnp.float32) for _ in firsts)


def _rows(tiling: Tiling, x_ref: Any, row_R: jax.Array, start: jax.Array, size: int) -> jax.Array:
    """Some inputs of the block's rows; zeros where there is no row."""
    column_K = start + jnp.arange(size, dtype=jnp.int32)
    return plt.load(x_ref.at[row_R[:, None], column_K[None]], mask=(row_R < tiling.A)[:, None], other=0)


def _tile(tiling: Tiling, ref: Any, expert: jax.Array, first: jax.Array, start: jax.Array, size: int) -> jax.Array:
    return plt.load(ref.at[expert, pl.ds(first, tiling.outputs), pl.ds(start, size)])


def _widened(tile_NK: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """A tile in the type that is multiplied. 8-bit floats are bytes, which any card can widen, and lack their unit."""
    return (fp8_by_bits(tile_NK) if tile_NK.dtype == jnp.uint8 else tile_NK).astype(dtype)


def _dot(x_RK: jax.Array, weight_NK: jax.Array) -> jax.Array:
    exact = jax.lax.Precision.HIGHEST if x_RK.dtype == jnp.float32 else None
    return plt.dot(x_RK, weight_NK.T, precision=exact)
