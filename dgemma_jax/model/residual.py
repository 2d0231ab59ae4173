"""What a layer adds to the residual stream, and the norms of it that its parts read.

    x, attended      -> x + norm(attended), and norms of that: what the MLP, the experts and the router read
    x, mlp, experts  -> (x + norm(norm(mlp) + norm(experts))) * the layer's scalar

Done plainly each is several small programs on a GPU, one after another; on NVIDIA GPUs each is one kernel with a
program for every token, written in Pallas (https://docs.jax.dev/en/latest/pallas) for its Triton backend; elsewhere it
can be interpreted.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt
from jax.sharding import Mesh

from dgemma_jax.model.norms import rms_norm, run_as_kernels, with_gradient_of
from dgemma_jax.model.router import router_norm

WARPS = 4
"""Threads of a program, in 32. Measured on an H200: docs/performance.md."""


class AttendedScales(NamedTuple):
    """Of the norms of what attention made, and of what the MLP, the experts and the router read."""

    out_D: jax.Array
    mlp_D: jax.Array
    experts_D: jax.Array
    router_D: jax.Array


class Attended(NamedTuple):
    """The residual stream after attention, and norms of it."""

    x_BTD: jax.Array
    for_mlp_BTD: jax.Array
    for_experts_BTD: jax.Array
    for_router_BTD: jax.Array


class BranchScales(NamedTuple):
    """Of the norms of what the MLP and the experts made, and of their sum; the scalar of the whole layer."""

    mlp_D: jax.Array
    experts_D: jax.Array
    sum_D: jax.Array
    layer_1: jax.Array


def add_attended(
    x_BTD: jax.Array, attended_BTD: jax.Array, scales: AttendedScales, epsilon: float, mesh: Mesh | None
) -> Attended:
    """The residual stream with what attention made, normed; and what is read of it."""
    run = add_attended_by_kernel if run_as_kernels(x_BTD, mesh) else add_attended_plainly
    return run(x_BTD, attended_BTD, scales, epsilon)


def add_branches(
    x_BTD: jax.Array,
    mlp_BTD: jax.Array,
    expert_BTD: jax.Array,
    scales: BranchScales,
    epsilon: float,
    mesh: Mesh | None,
) -> jax.Array:
    """The residual stream with what the MLP and the experts made, normed apart and together."""
    run = add_branches_by_kernel if run_as_kernels(x_BTD, mesh) else add_branches_plainly
    return run(x_BTD, mlp_BTD, expert_BTD, scales, epsilon)


def add_attended_plainly(x_BTD: jax.Array, attended_BTD: jax.Array, scales: AttendedScales, epsilon: float) -> Attended:
    """As `add_attended`, for any device."""
    x_BTD = x_BTD + rms_norm(attended_BTD, scales.out_D, epsilon)
    return Attended(
        x_BTD,
        rms_norm(x_BTD, scales.mlp_D, epsilon),
        rms_norm(x_BTD, scales.experts_D, epsilon),
        router_norm(x_BTD, scales.router_D, epsilon),
    )


def add_branches_plainly(
    x_BTD: jax.Array, mlp_BTD: jax.Array, expert_BTD: jax.Array, scales: BranchScales, epsilon: float
) -> jax.Array:
    """As `add_branches`, for any device."""
    sum_BTD = rms_norm(mlp_BTD, scales.mlp_D, epsilon) + rms_norm(expert_BTD, scales.experts_D, epsilon)
    return (x_BTD + rms_norm(sum_BTD, scales.sum_D, epsilon)) * scales.layer_1[0]


def add_attended_by_kernel(
    x_BTD: jax.Array, attended_BTD: jax.Array, scales: AttendedScales, epsilon: float
) -> Attended:
    """As `add_attended`, and rounded where the plain way rounds; its gradient is that of the plain way."""
    kernel = functools.partial(_call, _attended_kernel, epsilon, Attended(x_BTD, x_BTD, x_BTD, x_BTD))
    plain = functools.partial(add_attended_plainly, epsilon=epsilon)
    return with_gradient_of(plain, kernel)(x_BTD, attended_BTD, scales)


def add_branches_by_kernel(
    x_BTD: jax.Array, mlp_BTD: jax.Array, expert_BTD: jax.Array, scales: BranchScales, epsilon: float
) -> jax.Array:
    """As `add_branches`, and rounded where the plain way rounds; its gradient is that of the plain way."""
    kernel = functools.partial(_call, _branches_kernel, epsilon, x_BTD)
    plain = functools.partial(add_branches_plainly, epsilon=epsilon)
    return with_gradient_of(plain, kernel)(x_BTD, mlp_BTD, expert_BTD, scales)


def _call(kernel: Any, epsilon: float, out: Any, *arrays: Any) -> Any:
    """One program for each token; what comes out is of the shapes of `out`."""
    B, T, D = arrays[0].shape
    call = pl.pallas_call(
        functools.partial(kernel, Row(T, D, epsilon)),
        out_shape=jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), out),
        grid=(B * T,),
        compiler_params=plt.CompilerParams(num_warps=WARPS),
        interpret=jax.default_backend() != "gpu",
        name=kernel.__name__.strip("_"),
    )
    return call(*arrays)


class Row(NamedTuple):
    """What a program works on: the numbers of one of T tokens, padded with zeros to a power of two."""

    T: int
    D: int
    epsilon: float

    def read(self, ref: Any) -> jax.Array:
        """The token's row of an array, or a scale: float32."""
        place, inside_D = self._place(ref)
        return plt.load(ref.at[place], mask=inside_D, other=0).astype(jnp.float32)

    def write(self, ref: Any, x_D: jax.Array) -> None:
        """Stores the token's row."""
        place, inside_D = self._place(ref)
        plt.store(ref.at[place], x_D.astype(ref.dtype), mask=inside_D)

    def norm(self, x_D: jax.Array, scale_D: jax.Array | None, dtype: jnp.dtype) -> jax.Array:
        """As `norms.rms_norm` of numbers that have been rounded to `dtype`."""
        inverse_1 = jax.lax.rsqrt(jnp.sum(x_D * x_D, keepdims=True) / self.D + self.epsilon)
        return rounded(x_D * inverse_1 if scale_D is None else x_D * inverse_1 * scale_D, dtype)

    def _place(self, ref: Any) -> tuple[tuple[Any, ...], jax.Array]:
        column_D = jnp.arange(pl.next_power_of_2(self.D), dtype=jnp.int32)
        row = (pl.program_id(0) // self.T, pl.program_id(0) % self.T) if len(ref.shape) == 3 else ()
        return (*row, column_D), column_D < self.D


def rounded(x_D: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """What is left of float32 numbers in `dtype`."""
    return x_D.astype(dtype).astype(jnp.float32)


def _attended_kernel(row: Row, x_ref: Any, attended_ref: Any, scale_refs: Any, *out_refs: Any) -> None:
    # Everything is read before anything is computed: a program waits for memory once.
    x_D, attended_D = row.read(x_ref), row.read(attended_ref)
    out_D, mlp_D, experts_D, router_D = (row.read(ref) for ref in scale_refs)
    dtype = x_ref.dtype
    x_D = rounded(x_D + row.norm(attended_D, out_D, dtype), dtype)
    for_router_D = rounded(row.norm(x_D, None, dtype) * router_D, dtype) * float(np.asarray(row.D**-0.5, dtype))
    made = (x_D, row.norm(x_D, mlp_D, dtype), row.norm(x_D, experts_D, dtype), for_router_D)
    for ref, made_D in zip(out_refs, made, strict=True):
        row.write(ref, made_D)


def _branches_kernel(row: Row, x_ref: Any, mlp_ref: Any, expert_ref: Any, scale_refs: Any, out_ref: Any) -> None:
    x_D, mlp_D, expert_D = (row.read(ref) for ref in (x_ref, mlp_ref, expert_ref))
    mlp_scale_D, expert_scale_D, sum_scale_D = (row.read(ref) for ref in scale_refs[:3])
    layer_1 = plt.load(scale_refs.layer_1.at[pl.ds(0, 1)]).astype(jnp.float32)
    dtype = x_ref.dtype
    sum_D = rounded(row.norm(mlp_D, mlp_scale_D, dtype) + row.norm(expert_D, expert_scale_D, dtype), dtype)
    row.write(out_ref, rounded(x_D + row.norm(sum_D, sum_scale_D, dtype), dtype) * layer_1)
