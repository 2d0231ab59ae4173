"""Between the projections of attention and its scores: heads are normed and rotated, keys and values go heads first.

Done plainly this is some ten small programs on a GPU, each of which waits for another; on NVIDIA GPUs it is one kernel,
written in Pallas (https://docs.jax.dev/en/latest/pallas) for its Triton backend; elsewhere it can be interpreted.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt
from jax.sharding import Mesh

from dgemma_jax.model.attention import KeyValue
from dgemma_jax.model.norms import rms_norm, run_as_kernels, with_gradient_of
from dgemma_jax.model.rope import Rotation, rotate

NUMBERS, NUMBERS_OF_WARP, MOST_WARPS = 4096, 1024, 32
"""Of a program, unless one key head and its queries have more, and of every 32 threads, measured on an H200
(docs/performance.md); and how many of those a program may have."""


class Heads(NamedTuple):
    """What the projections make: queries, keys and values, tokens first."""

    q_BTHC: jax.Array
    key_BTKC: jax.Array
    value_BTKC: jax.Array


class Scales(NamedTuple):
    """Of the norms of queries and keys; values have none."""

    q_C: jax.Array
    key_C: jax.Array


def norm_heads(
    raw: Heads, scales: Scales, turn: Rotation, epsilon: float, mesh: Mesh | None
) -> tuple[jax.Array, KeyValue]:
    """Queries [B, T, H, C] and keys normed, scaled and rotated, values normed."""
    run = norm_heads_by_kernel if fits(raw, mesh) else norm_heads_plainly
    return run(raw, scales, turn, epsilon)


def norm_heads_plainly(raw: Heads, scales: Scales, turn: Rotation, epsilon: float) -> tuple[jax.Array, KeyValue]:
    """As `norm_heads`, for any device."""
    q_BTHC = rotate(rms_norm(raw.q_BTHC, scales.q_C, epsilon), turn)
    key_BTKC = rotate(rms_norm(raw.key_BTKC, scales.key_C, epsilon), turn)
    value_BTKC = rms_norm(raw.value_BTKC, None, epsilon)
    return q_BTHC, KeyValue(jnp.moveaxis(key_BTKC, 1, 2), jnp.moveaxis(value_BTKC, 1, 2))


def fits(raw: Heads, mesh: Mesh | None) -> bool:
    """Whether the kernel takes over: where kernels run, for sizes that are powers of two, as those of tiles are."""
    H, C = raw.q_BTHC.shape[2:]
    G = H // raw.key_BTKC.shape[2]
    # A number's place is counted in 32 bits.
    powers = G.bit_count() == C.bit_count() == 1 and C >= 32 and raw.q_BTHC.size < 2**31
    return powers and run_as_kernels(raw.q_BTHC, mesh)


def norm_heads_by_kernel(raw: Heads, scales: Scales, turn: Rotation, epsilon: float) -> tuple[jax.Array, KeyValue]:
    """As `norm_heads`, in float32 throughout and rounded once, at the end; its gradient is that of the plain way."""
    plain, kernel = (functools.partial(run, epsilon=epsilon) for run in (norm_heads_plainly, _call))
    return with_gradient_of(plain, kernel)(raw, scales, turn)


def _call(raw: Heads, scales: Scales, turn: Rotation, epsilon: float) -> tuple[jax.Array, KeyValue]:
    (B, T, H, C), K = raw.q_BTHC.shape, raw.key_BTKC.shape[2]
    G = H // K
    each = (G + 2) * C
    heads = math.gcd(K, _power_of_two(NUMBERS // each))
    keys = jax.ShapeDtypeStruct((B, K, T, C), raw.key_BTKC.dtype)
    call = pl.pallas_call(
        functools.partial(_kernel, Sizes(T, G, C, heads, epsilon)),
        out_shape=(jax.ShapeDtypeStruct(raw.q_BTHC.shape, raw.q_BTHC.dtype), keys, keys),
        grid=(B * T, K // heads),
        compiler_params=plt.CompilerParams(num_warps=min(_power_of_two(heads * each // NUMBERS_OF_WARP), MOST_WARPS)),
        interpret=jax.default_backend() != "gpu",
        name="head_norms",
    )
    q_BTHC, *key_value = call(raw, scales, turn)
    return q_BTHC, KeyValue(*key_value)


def _power_of_two(number: int) -> int:
    """The largest that is not above the number; 1 for zero."""
    return 1 << max(number, 1).bit_length() - 1


class Sizes(NamedTuple):
    """Tokens, queries per key head, the size of a head, key heads of a program, and the norms' epsilon."""

    T: int
    G: int
    C: int
    heads: int
    epsilon: float


def _kernel(
    sizes: Sizes, raw: Any, scales: Any, turn: Any, q_out_ref: Any, key_out_ref: Any, value_out_ref: Any
) -> None:
    """Some key heads of one token, and the query heads that they serve."""
    row, token = pl.program_id(0) // sizes.T, pl.program_id(0) % sizes.T
    key_heads = pl.ds(pl.program_id(1) * sizes.heads, sizes.heads)
    q_heads = pl.ds(pl.program_id(1) * sizes.heads * sizes.G, sizes.heads * sizes.G)
    # Everything is read before anything is computed: a program waits for memory once.
    q_halves, key_halves = (
        _halves(sizes, ref, row, token, heads) for ref, heads in ((raw.q_BTHC, q_heads), (raw.key_BTKC, key_heads))
    )
    value_RC = plt.load(raw.value_BTKC.at[row, token, key_heads]).astype(jnp.float32)
    q_scale, key_scale = (_halves(sizes, scale_ref) for scale_ref in scales)
    # The angles of both halves are the same.
    cos_C, sin_C = (_halves(sizes, turn_ref, row, token)[0] for turn_ref in turn)
    _store(sizes, q_out_ref, (row, token, q_heads), _turned(sizes, q_halves, q_scale, cos_C, sin_C))
    place = (row, key_heads, token)
    _store(sizes, key_out_ref, place, _turned(sizes, key_halves, key_scale, cos_C, sin_C))
    value_RC *= _inverse(sizes, jnp.sum(value_RC * value_RC, axis=1))
    plt.store(value_out_ref.at[place], value_RC.astype(value_out_ref.dtype))


Halves = tuple[jax.Array, jax.Array]


def _halves(sizes: Sizes, ref: Any, *place: Any) -> Halves:
    half = sizes.C // 2
    first, second = (plt.load(ref.at[(*place, pl.ds(start, half))]).astype(jnp.float32) for start in (0, half))
    return first, second


def _turned(sizes: Sizes, halves: Halves, scale: Halves, cos_C: jax.Array, sin_C: jax.Array) -> Halves:
    """Heads normed, scaled and rotated, a half beside the other."""
    squares_R = jnp.sum(halves[0] * halves[0], axis=1) + jnp.sum(halves[1] * halves[1], axis=1)
    inverse_R1 = _inverse(sizes, squares_R)
    x_RC, y_RC = (half_RC * inverse_R1 * scale_C[None] for half_RC, scale_C in zip(halves, scale, strict=True))
    return x_RC * cos_C[None] - y_RC * sin_C[None], y_RC * cos_C[None] + x_RC * sin_C[None]


def _inverse(sizes: Sizes, squares_R: jax.Array) -> jax.Array:
    """One over the root of the mean square."""
    return jax.lax.rsqrt(squares_R / sizes.C + sizes.epsilon)[:, None]


def _store(sizes: Sizes, ref: Any, place: tuple[Any, ...], halves: Halves) -> None:
    half = sizes.C // 2
    for start, out_RC in zip((0, half), halves, strict=True):
        plt.store(ref.at[(*place, pl.ds(start, half))], out_RC.astype(ref.dtype))
