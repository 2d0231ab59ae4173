"""Weights of 8 or 4 bits, and products with them that never hold the whole weight in full precision.

    int8   one scale an output channel; the scale is applied to the product
    fp8    the same with 8-bit floats (e4m3), as published checkpoints have them; kept as the bytes they are, because
           XLA's CPU backend would bring every slice of float8 by way of a wider copy of the whole
    int4   one scale for every group of inputs; two numbers in a byte: the first half of a row in the low four bits

On a CPU a product runs over tiles of output channels; a tile is widened, used and thrown away. Elsewhere the compiler
widens a matrix while it multiplies: 24 of 4096 x 2816 take 0.55 ms on an H200, 9.0 tile by tile and 1.2 in bfloat16.
Only weights are quantised: activations keep their type. `dgemma_jax.checkpoint.quantize` makes these from full weights.
"""

from __future__ import annotations

import dataclasses
import math
from types import EllipsisType

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

TILE_NUMBERS = 2**20
"""Numbers of a tile on a CPU: 4 MiB of float32."""
OFFSET = 8  # four bits hold 0 to 15 for -8 to 7
FP8_UNIT = 256
"""What an 8-bit float is of its bits as a half: 2 ** 8, the bias of 5 bits of exponent against that of 4."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Quantized:
    """A matrix [outputs..., inputs] in place of a full one.

    values: int8 [outputs..., Z]; uint8 of the same shape, the bytes of float8_e4m3fn; or, of four bits, uint8
        [outputs..., Z / 2] with two numbers each.
    scale: [outputs...], or [outputs..., groups].
    place: how `values` is cut over a mesh where its products see to that, as `matrix_parallel` does; None on one device
        and for experts, which `expert_parallel` hands to their devices.
    """

    values: jax.Array
    scale: jax.Array
    bits: int = dataclasses.field(metadata={"static": True})
    place: NamedSharding | None = dataclasses.field(default=None, metadata={"static": True})

    def __getitem__(self, everything: EllipsisType) -> Quantized:
        """Itself, where a parameter's array is asked for."""
        return self

    @property
    def shape(self) -> tuple[int, ...]:
        """Outputs, and inputs as one axis."""
        return (*self.values.shape[:-1], self.values.shape[-1] * (1 if self.bits == 8 else 2))

    @property
    def is_fp8(self) -> bool:
        return self.bits == 8 and self.values.dtype == jnp.uint8

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + self.scale.nbytes


def widened(weight: Quantized, dtype: jnp.dtype) -> tuple[jax.Array, ...]:
    """The numbers of a small weight: of 8 bits all, still to be scaled; of int4 those of both halves of the inputs."""
    if weight.bits == 8:
        return (_from_fp8(weight.values, dtype) if weight.is_fp8 else weight.values.astype(dtype),)
    scales = jnp.split(weight.scale.astype(jnp.float32)[..., None], 2, axis=-2)

    def scaled(numbers: jax.Array, scale: jax.Array) -> jax.Array:
        # fp32: the product of number and scale is rounded once.
        grouped = numbers.reshape(*scale.shape[:-1], -1).astype(jnp.float32) - OFFSET
        return (grouped * scale).astype(dtype).reshape(numbers.shape)

    return scaled(weight.values & 15, scales[0]), scaled(weight.values >> 4, scales[1])


def _from_fp8(values: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Bytes of 8-bit floats, widened exactly. Weights are never NaN, which is not looked at."""

    def by_bits(values: jax.Array) -> jax.Array:
        return (fp8_by_bits(values) * FP8_UNIT).astype(dtype)

    def by_device(values: jax.Array) -> jax.Array:
        return jax.lax.bitcast_convert_type(values, jnp.float8_e4m3fn).astype(dtype)

    return jax.lax.platform_dependent(values, cpu=by_bits, default=by_device)


def fp8_by_bits(values: jax.Array) -> jax.Array:
    """Bytes of 8-bit floats, widened exactly without knowing their type: float32, the numbers without `FP8_UNIT`."""
    wide = values.astype(jnp.uint16)
    # The upper bits of a half, of subnormal ones as well.
    half = jax.lax.bitcast_convert_type((wide & 0x80) << 8 | (wide & 0x7F) << 7, jnp.float16)
    return half.astype(jnp.float32)


def product(x_AZ: jax.Array, weight: Quantized) -> jax.Array:
    """`x @ weight.T` for a weight [Y, Z]: [A, Y] in the type of `x`."""
    Y, Z = weight.shape
    tiles = next(n for n in range(1, Y + 1) if Y % n == 0 and Y // n * Z <= max(TILE_NUMBERS, Z))
    if tiles == 1 or jax.default_backend() != "cpu":
        return _tile(x_AZ, weight)
    cut = jax.tree.map(lambda part: part.reshape(tiles, Y // tiles, *part.shape[1:]), weight)
    made = jax.lax.map(lambda tile: _tile(x_AZ, tile), cut)
    return jnp.moveaxis(made, 0, 1).reshape(len(x_AZ), Y)


def _tile(x_AZ: jax.Array, weight: Quantized) -> jax.Array:
    parts = widened(weight, x_AZ.dtype)
    exact = jax.lax.Precision.HIGHEST if x_AZ.dtype == jnp.float32 else None

    def times(x_AZ: jax.Array, numbers_YZ: jax.Array) -> jax.Array:
        return jnp.einsum("az,yz->ay", x_AZ, numbers_YZ, precision=exact, preferred_element_type=jnp.float32)

    # Each half of the inputs with its own half of the numbers: they need not be put together.
    y_AY = sum(map(times, jnp.split(x_AZ, len(parts), axis=-1), parts), jnp.float32(0))
    return (y_AY * weight.scale[None] if weight.bits == 8 else y_AY).astype(x_AZ.dtype)


def einsum(formula: str, x: jax.Array, weight: Quantized) -> jax.Array:
    """A product written as for a full weight: its last axes, and those of `x`, are summed over."""
    inputs, out = formula.split("->")
    left, right = inputs.split(",")
    summed = "".join(axis for axis in right if axis not in out)
    kept = left.removesuffix(summed)
    assert left.endswith(summed) and right.endswith(summed) and out == kept + right.removesuffix(summed), formula
    flat = jax.tree.map(lambda part: part.reshape(-1, *part.shape[len(right) - len(summed) :]), weight)
    x_AZ = x.reshape(math.prod(x.shape[: len(kept)]), -1)
    return product(x_AZ, flat).reshape(*x.shape[: len(kept)], *weight.shape[:-1])
