"""Products with quantised matrices whose rows or columns are spread over devices.

Full weights need nothing of the kind: there the compiler sees by itself how a product is cut. A product with a
quantised one is a loop over tiles, which it would bring the parts together for.
"""

from __future__ import annotations

import dataclasses

import jax
from jax.sharding import Mesh, PartitionSpec

from dgemma_jax import sharding
from dgemma_jax.model import quantized
from dgemma_jax.model.quantized import Quantized


def einsum(formula: str, x: jax.Array, weight: Quantized) -> jax.Array:
    """As `quantized.einsum`: each device with its part, and a sum over devices where the inputs are cut. Where they are
    not and those of `x` are, as in four bits, `x` is brought together.

    The first axis of `x` are rows, which may be spread over `data`.
    """
    if weight.place is None:
        return quantized.einsum(formula, x, weight)
    mesh, spec = weight.place.mesh, weight.place.spec
    assert isinstance(mesh, Mesh)
    *outputs, inputs = spec
    right, out = formula.split(",")[1].split("->")
    summed = sum(axis not in out for axis in right)
    (rows,), whole = sharding.spec(["rows"], x.shape[:1], mesh), (None,) * (x.ndim - summed - 1)
    scale = PartitionSpec(*outputs)  # of four bits its groups are whole

    def local(x: jax.Array, weight: Quantized) -> jax.Array:
        made = quantized.einsum(formula, x, dataclasses.replace(weight, place=None))
        return jax.lax.psum(made, inputs) if inputs else made

    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(
            PartitionSpec(rows, *whole, inputs, *(None,) * (summed - 1)),
            dataclasses.replace(weight, values=spec, scale=scale),  # type: ignore[arg-type]
        ),
        out_specs=PartitionSpec(rows, *whole, *outputs),
        check_vma=False,
    )(x, weight)
