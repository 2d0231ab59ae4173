"""Choosing and running experts."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from golden import reading
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import ROUNDING

import dgemma_jax
from dgemma_jax.checkpoint.quantize import KINDS
from dgemma_jax.config import DIFFUSION_GEMMA_26B_A4B, TextConfig
from dgemma_jax.model import moe_all
from dgemma_jax.model.moe import BACKENDS, all_experts, choose_backend, runs_as
from dgemma_jax.model.router import Router, Routing
from serve.config import ServeConfig
from tools.module_cost import made, sizes

E, D, F = 7, 16, 16
COMPILED = {
    name: jax.jit(backend) for name, backend in BACKENDS.items() if name not in ("grouped_blocks", "gmm")
}  # whose kernels are interpreted here: see test_grouped.py and test_gmm.py


def numbers(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape) * shape[-1] ** -0.5, jnp.float32)


GATE_UP, DOWN = numbers(1, E, 2 * F, D), numbers(2, E, D, F)


def routing_of(experts: np.ndarray, seed: int) -> Routing:
    weights = np.random.default_rng(seed).uniform(0.1, 2, experts.shape)
    return Routing(jnp.asarray(experts, jnp.int32), jnp.asarray(weights, jnp.float32), jnp.zeros((len(experts), E)))


def plain(x_AD: np.ndarray, routing: Routing) -> np.ndarray:
    """The definition, token by token, in float64."""
    gate_up, down = np.asarray(GATE_UP, np.float64), np.asarray(DOWN, np.float64)
    out = np.zeros(x_AD.shape)
    for token, (experts, weights) in enumerate(zip(*map(np.asarray, routing[:2]), strict=True)):
        for expert, weight in zip(experts, weights, strict=True):
            gate, up = np.split(gate_up[expert] @ x_AD[token], 2)
            gelu = 0.5 * gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)))
            out[token] += weight * (down[expert] @ (gelu * up))
    return out


@settings(max_examples=30, deadline=None)
@given(
    tokens=st.sampled_from((1, 16, 37)),
    chosen=st.sampled_from((1, 2, 3)),
    skew=st.sampled_from((0.0, 2.0, 1e6)),
    seed=st.integers(0, 2**32 - 1),
)
def test_backends_agree_with_the_definition_however_skewed_the_routing(
    tokens: int, chosen: int, skew: float, seed: int
) -> None:
    """A skew of 1e6 sends every token to the same experts."""
    rng = np.random.default_rng(seed)
    score = rng.gumbel(size=(tokens, E)) + skew * rng.permutation(E)
    routing = routing_of(np.argsort(-score, axis=-1)[:, :chosen], seed)
    x_AD = np.asarray(rng.normal(size=(tokens, D)), np.float32)
    wanted = plain(x_AD, routing)
    for name, backend in COMPILED.items():
        found = backend(jnp.asarray(x_AD), routing, GATE_UP, DOWN)
        np.testing.assert_allclose(np.asarray(found), wanted, rtol=0, atol=ROUNDING, err_msg=name)


def small_router(seed: int) -> Router:
    config = reading.model("window6").config.text
    router = Router(config, nnx.Rngs(seed), jnp.dtype("float32"))
    router.per_expert_scale_E[...] = jnp.linspace(0.5, 1.5, config.num_experts)
    router.scale_D[...] = jnp.linspace(0.2, 2.0, config.hidden_size)
    return router


def test_the_likeliest_experts_are_chosen_and_weigh_their_share_times_their_scale() -> None:
    router = small_router(0)
    x_AD = numbers(3, 20, 32) * 30
    routing = router(x_AD)
    probability, experts = np.asarray(routing.probability_AE), np.asarray(routing.expert_AX)
    np.testing.assert_array_equal(experts, np.argsort(-probability, axis=-1)[:, :2])
    share = np.take_along_axis(probability, experts, -1)
    share /= share.sum(axis=-1, keepdims=True)
    scale = np.linspace(0.5, 1.5, 6)[experts]
    np.testing.assert_allclose(routing.weight_AX, share * scale, rtol=ROUNDING)
    np.testing.assert_allclose((np.asarray(routing.weight_AX) / scale).sum(axis=-1), 1, rtol=ROUNDING)
    assert np.abs(np.asarray(routing.weight_AX).sum(axis=-1) - 1).max() > 0.1, "weights need not sum to one"


def test_the_router_does_not_see_how_large_its_input_is() -> None:
    router, x_AD = small_router(1), numbers(4, 8, 32)
    np.testing.assert_allclose(router(x_AD).weight_AX, router(x_AD * 1000).weight_AX, rtol=1e-3)


@pytest.mark.parametrize("backend", sorted(BACKENDS))
def test_experts_permuted_together_with_the_router_change_nothing(backend: str) -> None:
    router, permuted = small_router(2), small_router(2)
    order = np.array([3, 0, 5, 1, 4, 2])
    permuted.proj_ED[...] = router.proj_ED[...][order]
    permuted.per_expert_scale_E[...] = router.per_expert_scale_E[...][order]
    x_AD = numbers(5, 20, 32)
    gate_up, down = numbers(6, 6, 32, 32), numbers(7, 6, 32, 16)
    run = BACKENDS[backend]
    wanted = run(x_AD, router(x_AD), gate_up, down)
    found = run(x_AD, permuted(x_AD), gate_up[order], down[order])
    np.testing.assert_allclose(np.asarray(found), np.asarray(wanted), rtol=0, atol=ROUNDING)


def test_the_backend_is_chosen_by_device_and_by_what_all_experts_would_waste() -> None:
    few: TextConfig = reading.model("window6").config.text
    assert choose_backend(DIFFUSION_GEMMA_26B_A4B.text, "cpu") == "expert_blocks"
    assert choose_backend(few, "cpu") == choose_backend(few, "gpu") == "all_experts"
    assert choose_backend(DIFFUSION_GEMMA_26B_A4B.text, "gpu") == "grouped_blocks"
    assert choose_backend(DIFFUSION_GEMMA_26B_A4B.text, "gpu", quantized=True) == "grouped_blocks"
    assert choose_backend(DIFFUSION_GEMMA_26B_A4B.text, "gpu", kernels=False) == "capacity_buckets"
    assert choose_backend(DIFFUSION_GEMMA_26B_A4B.text, "tpu") == "gmm"
    assert choose_backend(DIFFUSION_GEMMA_26B_A4B.text, "tpu", quantized=True) == "capacity_buckets"


def test_the_log_names_the_backend_that_does_the_work(caplog: pytest.LogCaptureFixture) -> None:
    """The TPU's kernel leaves quantised weights to buckets, by whomever it was named."""
    assert [runs_as("gmm", quantized=quantized) for quantized in (False, True)] == ["gmm", "capacity_buckets"]
    assert runs_as("grouped_blocks", quantized=True) == "grouped_blocks"
    with caplog.at_level(logging.INFO):
        dgemma_jax.load(reading.FOLDER / "text_only", quantize="int8", backend="gmm")
    assert "experts run as capacity_buckets" in caplog.text


def test_the_flags_of_the_server_name_all_backends_and_kinds_of_weights() -> None:
    fields = ServeConfig.__dataclass_fields__
    assert set(fields["moe_backend"].metadata["choices"]) == set(BACKENDS)
    assert set(fields["quantize"].metadata["choices"]) == set(KINDS)


def test_no_device_gets_the_ragged_product_unasked() -> None:
    few: TextConfig = reading.model("window6").config.text
    for config in (few, DIFFUSION_GEMMA_26B_A4B.text):
        assert "ragged_dot" not in {choose_backend(config, platform) for platform in ("cpu", "gpu", "tpu")}


def dense(tokens: int, dtype: str) -> tuple[jax.Array, Routing, jax.Array, jax.Array]:
    """What few experts are run on; no two arrays of it and of what is made of it have as many numbers."""
    experts, hidden, width = 8, 24, 40
    chosen = np.argsort(np.random.default_rng(8).random((tokens, experts)), axis=-1)[:, :2]
    x_AD, gate_up, down = numbers(9, tokens, width), numbers(10, experts, 2 * hidden, width), numbers(11, 8, 40, 24)
    return x_AD.astype(dtype) * 6, routing_of(chosen, 12), gate_up.astype(dtype), down.astype(dtype)


def test_on_a_cpu_all_experts_read_bfloat16_as_it_lies() -> None:
    """Neither turned around nor widened."""
    x_AD, routing, gate_up, down = dense(21, "bfloat16")
    module = jax.jit(all_experts).lower(x_AD, routing, gate_up, down).compile()
    found = {math.prod(sizes(kind)) for _, kind in made(module.as_text())}
    assert not found & {gate_up.size, down.size}
    plain = jax.jit(moe_all.summed_plainly).lower(jnp.zeros((21, 8, 24), jnp.bfloat16), down).compile()
    assert down.size in {math.prod(sizes(kind)) for _, kind in made(plain.as_text())}, "a copy would be seen"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_token_gets_the_same_of_all_experts_in_any_batch(dtype: str) -> None:
    """To the bit."""
    whole = COMPILED["all_experts"](*dense(96, dtype))
    for tokens in (8, 32, 64):
        x_AD, routing, *weights = dense(96, dtype)
        few = COMPILED["all_experts"](x_AD[:tokens], Routing(*(part[:tokens] for part in routing[:3])), *weights)
        np.testing.assert_array_equal(whole[:tokens], few)


def with_gradients(run: Callable[..., jax.Array], *inputs: jax.Array) -> tuple[jax.Array, ...]:
    """What it makes, and how a number made of that changes with its inputs."""

    def total(*inputs: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sin(run(*inputs).astype(jnp.float32)))

    return run(*inputs), *jax.grad(total, argnums=(0, 1))(*inputs)


@pytest.mark.parametrize("product", ["made", "summed"])
def test_products_with_weights_as_they_lie_are_the_plain_ones_and_have_their_gradients_to_the_bit(product: str) -> None:
    """Of bfloat16 the last of eight bits may differ."""
    x_AD, _, gate_up, down = dense(21, "bfloat16")
    inputs = (x_AD, gate_up.reshape(-1, 40)) if product == "made" else (numbers(13, 21, 8, 24).astype("bfloat16"), down)
    quick, plain = (getattr(moe_all, f"{product}_{how}") for how in ("where_it_lies", "plainly"))
    (found, *gradients), (wanted, *plain_gradients) = (with_gradients(run, *inputs) for run in (quick, plain))
    assert found.dtype == wanted.dtype == jnp.bfloat16
    found, wanted = np.asarray(found, np.float32), np.asarray(wanted, np.float32)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=0.01 * np.abs(wanted).max())
    jax.tree.map(np.testing.assert_array_equal, gradients, plain_gradients)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_blocks_hold_the_weights_of_few_experts_at_a_time(dtype: str) -> None:
    """No copy of all weights, which XLA would make to widen bfloat16 before the loop."""
    experts, hidden, width = 64, 32, 64
    shapes = [(32, width), (experts, 2 * hidden, width), (experts, width, hidden)]
    x, gate_up, down = (jax.ShapeDtypeStruct(shape, jnp.dtype(dtype)) for shape in shapes)
    routing = routing_of(np.zeros((32, 2), int), 0)
    temporary = COMPILED["expert_blocks"].lower(x, routing, gate_up, down).compile().memory_analysis()
    assert temporary.temp_size_in_bytes < 3 * experts * hidden * width * jnp.dtype(dtype).itemsize / 2
