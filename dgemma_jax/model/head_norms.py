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

NUMBERS, WARPS = 2048, 4
"""Of a program: numbers of its queries, unless one key head's are more, and threads in 32."""


class Heads(NamedTuple):
    """What the projections make: queries, keys and values, tokens first."""

    q_BTHC: jax.Array
    key_BTKC: jax.Array
    value_BTKC: jax.Array


class Scales(NamedTuple):
    """Of the norms of queries and keys; values have none."""

    q_C: jax.Array
    key_C: jax.Array


def norm_heads(raw: Heads, scales: Scales, turn: Rotation, epsilon: float) -> tuple[jax.Array, KeyValue]:
    """Queries [B, T, H, C] and keys normed, scaled and rotated, values normed."""
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
    """As `norm_heads`, in float32 throughout and rounded once, at the end; its gradient is that of `norm_heads`."""
    plain, kernel = (functools.partial(run, epsilon=epsilon) for run in (norm_heads, _call))
    return with_gradient_of(plain, kernel)(raw, scales, turn)


def _call(raw: Heads, scales: Scales, turn: Rotation, epsilon: float) -> tuple[jax.Array, KeyValue]:
    (B, T, H, C), K = raw.q_BTHC.shape, raw.key_BTKC.shape[2]
    at_once = math.gcd(B * T * K, max(NUMBERS // (H // K * C), 1))
    sizes = Sizes(T, H, K, C, at_once, epsilon)
    flat = (x.reshape(-1, C) for x in (*raw, *turn))
    keys = jax.ShapeDtypeStruct((B * K * T, C), raw.key_BTKC.dtype)
    call = pl.pallas_call(
        functools.partial(_kernel, sizes),
        out_shape=(jax.ShapeDtypeStruct((B * T * H, C), raw.q_BTHC.dtype), keys, keys),
        grid=(B * T * K // at_once,),
        compiler_params=plt.CompilerParams(num_warps=WARPS),
        interpret=jax.default_backend() != "gpu",
        name="head_norms",
    )
    q_YC, *key_value = call(*flat, *scales)
    return q_YC.reshape(raw.q_BTHC.shape), KeyValue(*(x.reshape(B, K, T, C) for x in key_value))


class Sizes(NamedTuple):
    """Tokens, query heads, key heads, the size of a head, key heads of a program, and the norms' epsilon."""

    T: int
    H: int
    K: int
    C: int
    at_once: int
    epsilon: float


def _kernel(
    sizes: Sizes,
    q_ref: Any,
    key_ref: Any,
    value_ref: Any,
    cos_ref: Any,
    sin_ref: Any,
    q_scale_ref: Any,
    key_scale_ref: Any,
    q_out_ref: Any,
    key_out_ref: Any,
    value_out_ref: Any,
) -> None:
    """Some key heads, of one token or of several that follow each other, and the query heads that they serve."""
    turn = (cos_ref, sin_ref)
    queries = sizes.at_once * sizes.H // sizes.K
    query_R = pl.program_id(0) * queries + jnp.arange(queries, dtype=jnp.int32)
    _turn(sizes, q_ref, query_R, q_scale_ref, turn, query_R // sizes.H, q_out_ref, query_R)
    key_R = pl.program_id(0) * sizes.at_once + jnp.arange(sizes.at_once, dtype=jnp.int32)
    token_R, head_R = key_R // sizes.K, key_R % sizes.K
    heads_first_R = (token_R // sizes.T * sizes.K + head_R) * sizes.T + token_R % sizes.T
    _turn(sizes, key_ref, key_R, key_scale_ref, turn, token_R, key_out_ref, heads_first_R)
    column_1C = jnp.arange(sizes.C, dtype=jnp.int32)[None]
    value_RC = plt.load(value_ref.at[key_R[:, None], column_1C]).astype(jnp.float32)
    value_RC *= _inverse(sizes, jnp.sum(value_RC * value_RC, axis=1))
    plt.store(value_out_ref.at[heads_first_R[:, None], column_1C], value_RC.astype(value_out_ref.dtype))


def _turn(
    sizes: Sizes,
    ref: Any,
    row_R: jax.Array,
    scale_ref: Any,
    turn: tuple[Any, Any],
    token_R: jax.Array,
    out_ref: Any,
    out_R: jax.Array,
) -> None:
    """Norms, scales and rotates heads, a half beside the other: their angles are the same."""
    first_C = jnp.arange(sizes.C // 2, dtype=jnp.int32)
    halves = (first_C, first_C + sizes.C // 2)
    read = [plt.load(ref.at[row_R[:, None], half_C[None]]).astype(jnp.float32) for half_C in halves]
    cos_RC, sin_RC = (plt.load(x.at[token_R[:, None], first_C[None]]).astype(jnp.float32) for x in turn)
    inverse_R1 = _inverse(sizes, sum(jnp.sum(x_RC * x_RC, axis=1) for x_RC in read))
    x_RC, y_RC = (
        half_RC * inverse_R1 * plt.load(scale_ref.at[half_C]).astype(jnp.float32)[None]
        for half_RC, half_C in zip(read, halves, strict=True)
    )
    for half_C, out_RC in zip(halves, (x_RC * cos_RC - y_RC * sin_RC, y_RC * cos_RC + x_RC * sin_RC), strict=True):
        plt.store(out_ref.at[out_R[:, None], half_C[None]], out_RC.astype(out_ref.dtype))


def _inverse(sizes: Sizes, squares_R: Any) -> jax.Array:
    """One over the root of the mean square."""
    return jax.lax.rsqrt(squares_R / sizes.C + sizes.epsilon)[:, None]
