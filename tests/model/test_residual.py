"""Sums of the residual stream and their norms as kernels: interpreted here, lowered for NVIDIA GPUs, where used."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from abstract_gpu import h200
from flax import nnx
from tolerances import ROUNDING

from dgemma_jax.config import DIFFUSION_GEMMA_26B_A4B, FULL
from dgemma_jax.model import gpu, residual
from dgemma_jax.model.layer import Layer
from dgemma_jax.model.residual import (
    AttendedScales,
    BranchScales,
    add_attended_by_kernel,
    add_attended_plainly,
    add_branches_by_kernel,
    add_branches_plainly,
)
from dgemma_jax.model.rope import rotation, text_frequencies

EPSILON, D = 1e-6, 88
"""A width that is no power of two, as that of the 26B."""
PAIRS = [(add_attended_by_kernel, add_attended_plainly), (add_branches_by_kernel, add_branches_plainly)]


def numbers(seed: int, *shape: int, dtype: str = "float32") -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def arguments(plain: Callable[..., Any], rows: int, dtype: str = "float32", make: Callable[..., Any] = numbers) -> Any:
    x, first, second = (make(seed, rows, 5, D, dtype=dtype) for seed in range(3))
    scales = [make(seed, D, dtype=dtype) for seed in range(3, 6)]
    if plain is add_attended_plainly:
        return x, first, AttendedScales(*scales, make(6, D, dtype=dtype))
    return x, first, second, BranchScales(*scales, make(6, 1, dtype=dtype))


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize(("kernel", "plain"), PAIRS)
def test_a_kernel_is_the_plain_sums_and_norms(kernel: Callable[..., Any], plain: Callable[..., Any], rows: int) -> None:
    arrays = arguments(plain, rows)
    found, wanted = kernel(*arrays, EPSILON), plain(*arrays, EPSILON)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=ROUNDING), found, wanted)


@pytest.mark.parametrize(("kernel", "plain"), PAIRS)
def test_in_bfloat16_it_rounds_where_the_plain_way_does(kernel: Callable[..., Any], plain: Callable[..., Any]) -> None:
    """To the bit, but for the rare number that float32 leaves beside the middle of two others."""
    arrays = arguments(plain, 2, "bfloat16")
    found, wanted = kernel(*arrays, EPSILON), plain(*arrays, EPSILON)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert float(jnp.mean(x != y)) < 0.005


@pytest.mark.parametrize(("kernel", "plain"), PAIRS)
def test_a_gradient_goes_back_through_it_as_through_the_plain_way(
    kernel: Callable[..., Any], plain: Callable[..., Any]
) -> None:
    arrays = arguments(plain, 1)

    def back(run: Callable[..., Any]) -> Any:
        def total(*arrays: Any) -> jax.Array:
            return sum(jnp.sum(x**3) for x in jax.tree.leaves(run(*arrays, EPSILON)))

        return jax.grad(total, tuple(range(len(arrays))))(*arrays)

    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-3), back(kernel), back(plain))


def test_a_layer_adds_by_kernels_on_one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    config = dataclasses.replace(
        DIFFUSION_GEMMA_26B_A4B.text,
        hidden_size=D,
        intermediate_size=32,
        moe_intermediate_size=16,
        num_experts=4,
        top_k_experts=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_global_key_value_heads=1,
        global_head_dim=32,
    )
    layer = Layer(config, FULL, nnx.Rngs(0), jnp.dtype("bfloat16"), "all_experts")
    x = numbers(1, 1, 5, D, dtype="bfloat16")
    turn = rotation(jnp.arange(5)[None], text_frequencies(config, FULL), x.dtype)
    calls: list[str] = []
    for kernel, _ in PAIRS:

        def watched(*arrays: Any, kernel: Callable[..., Any] = kernel, name: str = kernel.__name__) -> Any:
            calls.append(name)
            return kernel(*arrays)

        monkeypatch.setattr(residual, kernel.__name__, watched)
    plain_x, *_ = layer.run(x, turn, None, None, "decoder")
    assert calls == [], "there is no GPU here"
    monkeypatch.setattr(gpu, "runs_kernels", lambda: True)
    by_kernel, *_ = layer.run(x, turn, None, None, "decoder")
    assert calls == ["add_attended_by_kernel", "add_branches_by_kernel"]
    np.testing.assert_allclose(np.float32(by_kernel), np.float32(plain_x), rtol=0, atol=0.06)
    layer.attention.mesh = jax.make_mesh((1,), ("x",))
    layer.run(x, turn, None, None, "decoder")
    assert len(calls) == 2, "a mesh cuts rows over devices"


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")
@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize(("kernel", "plain"), PAIRS)
def test_the_kernels_of_the_published_sizes_lower_for_cuda_without_a_device(
    kernel: Callable[..., Any], plain: Callable[..., Any], rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    width, canvas = DIFFUSION_GEMMA_26B_A4B.text.hidden_size, DIFFUSION_GEMMA_26B_A4B.canvas_length

    def array(seed: int, *shape: int, dtype: str) -> jax.ShapeDtypeStruct:
        sizes = {D: width, 5: canvas}
        return jax.ShapeDtypeStruct(tuple(sizes.get(size, size) for size in shape), jnp.dtype(dtype))

    arrays = arguments(plain, rows, "bfloat16", array)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with h200():
        traced = jax.jit(kernel, static_argnums=len(arrays)).trace(*arrays, EPSILON)
        lowered = traced.lower(lowering_platforms=("cuda",))
    assert lowered.as_text().count("xla.gpu.triton") == 1
