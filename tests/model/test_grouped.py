"""The grouped kernels of experts: interpreted here, lowered for NVIDIA GPUs, and where buckets hand over to them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from abstract_gpu import h200
from tolerances import ROUNDING

from dgemma_jax.checkpoint.quantize import full, group_size, quantize
from dgemma_jax.config import DIFFUSION_GEMMA_26B_A4B
from dgemma_jax.model import gpu, moe_buckets, moe_grouped
from dgemma_jax.model.expert_parallel import of_device
from dgemma_jax.model.moe import all_experts
from dgemma_jax.model.moe_buckets import capacity_buckets
from dgemma_jax.model.moe_grouped import grouped_blocks, supports
from dgemma_jax.model.quantized import Quantized
from dgemma_jax.model.router import Routing

E, D, F = 6, 32, 32
EXPERTS = ("text", "layers", 0, "experts", "gate_up_EFD")
FP8 = np.dtype(ml_dtypes.float8_e4m3fn)


def numbers(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape) * shape[-1] ** -0.5, jnp.float32)


def routing_of(experts: np.ndarray) -> Routing:
    weights = np.random.default_rng(0).uniform(0.1, 2, experts.shape)
    return Routing(jnp.asarray(experts, jnp.int32), jnp.asarray(weights, jnp.float32), jnp.zeros((len(experts), E)))


def crowded(tokens: int) -> Routing:
    """Every token chooses expert 0, and another one."""
    others = 1 + np.arange(tokens) % (E - 1)
    return routing_of(np.stack([np.zeros(tokens, int), others], axis=1))


@pytest.mark.parametrize("tokens", [1, 40, 150])
def test_an_expert_with_several_blocks_and_one_with_none_are_summed_alike(tokens: int) -> None:
    x_AD, gate_up, down = numbers(1, tokens, D), numbers(2, E, 2 * F, D), numbers(3, E, D, F)
    for routing in (crowded(tokens), routing_of(np.tile([2, 4], (tokens, 1)))):
        found = grouped_blocks(x_AD, routing, gate_up, down)
        np.testing.assert_allclose(found, all_experts(x_AD, routing, gate_up, down), rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("kind", ["full", "int8", "int4"])
@pytest.mark.parametrize("tokens", [40, 150])
def test_matrices_of_several_tiles_are_multiplied_whole(tokens: int, kind: Any) -> None:
    """Three tiles of outputs and of inputs, and three groups of four bits in each half; blocks few and many rows."""
    x_AD, gate_up, down = numbers(1, tokens, 192), numbers(2, E, 2 * 96, 192), numbers(3, E, 192, 96)
    weights: list[Any] = [gate_up, down]
    if kind != "full":
        weights = [quantize(np.asarray(weight), EXPERTS, kind) for weight in weights]
        gate_up, down = (
            jnp.asarray(full(few, whole.shape)) for few, whole in zip(weights, (gate_up, down), strict=True)
        )
    for routing in (crowded(tokens), routing_of(np.tile([2, 4], (tokens, 1)))):
        found = grouped_blocks(x_AD, routing, *weights)
        np.testing.assert_allclose(found, all_experts(x_AD, routing, gate_up, down), rtol=0, atol=ROUNDING)


def test_a_token_does_not_notice_the_others() -> None:
    """To the bit, whatever blocks the others fill."""
    x_AD, gate_up, down = numbers(1, 90, D), numbers(2, E, 2 * F, D), numbers(3, E, D, F)
    routing = crowded(90)
    few = Routing(*(part[:20] for part in routing[:3]))
    whole, part = grouped_blocks(x_AD, routing, gate_up, down), grouped_blocks(x_AD[:20], few, gate_up, down)
    np.testing.assert_array_equal(whole[:20], part)


def first_half(routing: Routing) -> Routing:
    """What a device is told that has the first half of the experts."""
    return of_device(routing, jnp.int32(0), E // 2)


def test_choices_of_experts_elsewhere_count_for_nothing() -> None:
    x_AD, gate_up, down = numbers(1, 30, D), numbers(2, E, 2 * F, D), numbers(3, E, D, F)
    routing = crowded(30)
    local = first_half(routing)
    wanted = all_experts(x_AD, routing._replace(weight_AX=local.weight_AX), gate_up, down)
    np.testing.assert_allclose(grouped_blocks(x_AD, local, gate_up[:3], down[:3]), wanted, rtol=0, atol=ROUNDING)


def test_the_rows_of_a_block_are_those_of_the_mean_expert_wherever_it_is() -> None:
    """At most 32 rows an expert on average, over all devices."""
    for tokens, rows in ((96, moe_grouped.FEW.rows), (97, moe_grouped.MANY.rows)):
        routing = crowded(tokens)
        for local, experts in ((routing, E), (first_half(routing), E // 2)):
            blocks = moe_grouped._blocks(local, experts)
            assert len(blocks.token_Z) == rows * len(blocks.expert_J)


def fp8_and_full(seed: int, *shape: int) -> tuple[Quantized, jax.Array]:
    """A weight in 8-bit floats, each output channel with a scale, and the full one that it stands for."""
    values = np.asarray(numbers(seed, *shape) * 100).astype(FP8)
    scale = np.random.default_rng(seed).uniform(0.005, 0.015, shape[:-1]).astype(np.float32)
    full = values.astype(np.float32) * scale[..., None]
    return Quantized(jnp.asarray(values.view(np.uint8)), jnp.asarray(scale), 8), jnp.asarray(full)


def test_weights_of_8_bit_floats_are_the_full_ones_they_stand_for() -> None:
    x_AD, routing = numbers(1, 40, D), crowded(40)
    (gate_up, full_gate_up), (down, full_down) = fp8_and_full(2, E, 2 * F, D), fp8_and_full(3, E, D, F)
    wanted = all_experts(x_AD, routing, full_gate_up, full_down)
    np.testing.assert_allclose(grouped_blocks(x_AD, routing, gate_up, down), wanted, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_8_bit_float_is_multiplied_as_the_number_it_is(dtype: str) -> None:
    """All that are numbers, exactly: each input has a row of its own, which it alone is in."""
    values = np.arange(256, dtype=np.uint8)
    values[[0x7F, 0xFF]] = 0  # not numbers
    weight = Quantized(jnp.asarray(values).reshape(1, 16, 16), jnp.ones((1, 16)), 8)
    rows, expert = jnp.arange(16, dtype=jnp.int32), jnp.zeros(1, jnp.int32)
    found = moe_grouped._run(jnp.eye(16, dtype=dtype), rows, expert, weight, gated=False)
    np.testing.assert_array_equal(np.asarray(found, np.float32).T.ravel(), values.view(FP8).astype(np.float32))


def test_groups_that_are_too_small_to_multiply_are_refused() -> None:
    weights = (
        quantize(np.asarray(weight), EXPERTS, "int4") for weight in (numbers(2, E, 96, 48), numbers(3, E, 48, 48))
    )
    assert group_size(48) == 8
    with pytest.raises(ValueError, match="groups of at least 16 inputs with a scale, found 8"):
        grouped_blocks(numbers(1, 4, 48), crowded(4), *weights)


def test_matrices_that_cannot_be_cut_are_refused_with_their_sizes() -> None:
    assert supports(704, 2816) and not supports(24, 64)
    with pytest.raises(ValueError, match="multiples of 16, found a matrix of 5 outputs and 32 inputs"):
        grouped_blocks(numbers(1, 4, D), crowded(4), numbers(2, E, 10, D), numbers(3, E, D, 5))


@pytest.mark.parametrize("kind", ["full", "fp8"])
@pytest.mark.parametrize("devices", [1, 2])
def test_on_a_gpu_buckets_leave_crowded_experts_to_the_kernels(
    devices: int, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those with over twice the mean of all experts, 50 rows: the busiest has 150, and where all are even, 50."""
    x_AD, (gate_up, full_gate_up), (down, full_down) = (
        numbers(1, 150, D),
        fp8_and_full(2, E, 2 * F, D),
        fp8_and_full(3, E, D, F),
    )
    weights = (full_gate_up, full_down) if kind == "full" else (gate_up, down)
    here = jax.tree.map(lambda part: part[: E // devices], weights)
    even = routing_of(np.stack([np.arange(150) % E, (np.arange(150) + 1) % E], axis=1))
    used: list[int] = []

    def watched(*arguments: jax.Array) -> jax.Array:
        jax.debug.callback(lambda: used.append(1))
        return grouped_blocks(*arguments)

    monkeypatch.setattr(moe_buckets, "grouped_blocks", watched)
    monkeypatch.setattr(moe_buckets, "CROWDED", 2)
    monkeypatch.setattr(gpu, "runs_kernels", lambda: True)
    for routing, times in ((even, 0), (crowded(150), 1)):
        local = routing if devices == 1 else first_half(routing)
        found = jax.block_until_ready(capacity_buckets(x_AD, local, *here))
        jax.effects_barrier()
        assert len(used) == times
        wanted = all_experts(x_AD, routing._replace(weight_AX=local.weight_AX), full_gate_up, full_down)
        np.testing.assert_allclose(found, wanted, rtol=0, atol=ROUNDING)


@pytest.fixture
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A GPU to lower for, which newer versions of JAX want to know."""
    monkeypatch.setattr(moe_grouped, "_interpreted", lambda: False)
    with h200():
        yield


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")
@pytest.mark.parametrize("kind", ["bfloat16", "float32", "int8", "fp8", "int4"])
def test_both_kernels_of_the_published_sizes_lower_for_cuda_without_a_device(kind: str, a_gpu: None) -> None:
    config = DIFFUSION_GEMMA_26B_A4B.text
    experts, width, hidden = config.num_experts, config.hidden_size, config.moe_intermediate_size

    def weight(outputs: int, inputs: int) -> jax.ShapeDtypeStruct | Quantized:
        if kind in ("bfloat16", "float32"):
            return jax.ShapeDtypeStruct((experts, outputs, inputs), jnp.dtype(kind))
        if kind != "int4":
            held = jnp.int8 if kind == "int8" else jnp.uint8
            scale = jax.ShapeDtypeStruct((experts, outputs), jnp.float32)
            return Quantized(jax.ShapeDtypeStruct((experts, outputs, inputs), held), scale, 8)
        groups = inputs // (64 if inputs % 128 == 0 else 32)
        scale = jax.ShapeDtypeStruct((experts, outputs, groups), jnp.bfloat16)
        return Quantized(jax.ShapeDtypeStruct((experts, outputs, inputs // 2), jnp.uint8), scale, 4)

    forms = ((config.top_k_experts, jnp.int32), (config.top_k_experts, jnp.float32), (experts, jnp.float32))
    routing = Routing(*(jax.ShapeDtypeStruct((256, size), kind) for size, kind in forms))
    x_AD = jax.ShapeDtypeStruct((256, width), jnp.float32 if kind == "float32" else jnp.bfloat16)
    traced = jax.jit(grouped_blocks).trace(x_AD, routing, weight(2 * hidden, width), weight(width, hidden))
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("triton") == 2 and "f8E4M3" not in text, "not every card knows 8-bit floats"
