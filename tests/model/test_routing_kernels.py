"""The kernels that route: interpreted here, lowered for NVIDIA GPUs, and where they take over."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from abstract_gpu import h200
from flax import nnx
from tolerances import ROUNDING

from dgemma_jax.config import DIFFUSION_GEMMA_26B_A4B, TextConfig
from dgemma_jax.model import gpu, moe_grouped, router, routing_kernels
from dgemma_jax.model.moe_grouped import blocks_plainly
from dgemma_jax.model.router import Router, Routing, choose_plainly
from dgemma_jax.model.routing_kernels import Blocks, choose, count, cut, fits

E, X = 32, 4
ROWS = 16


def numbers(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def agrees(score_AE: jax.Array) -> None:
    scale_E = jnp.exp(numbers(9, E))
    found = choose(score_AE, scale_E, X)
    expert_AX, weight_AX = choose_plainly(router._probabilities(score_AE), scale_E, X)
    np.testing.assert_array_equal(found.expert_AX, expert_AX)
    np.testing.assert_allclose(found.weight_AX, weight_AX, rtol=ROUNDING)
    np.testing.assert_array_equal(found.count_YE, count(expert_AX, E))


@pytest.mark.parametrize("tokens", [1, 16, 37])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_kernel_chooses_as_the_plain_router(tokens: int, dtype: str) -> None:
    agrees((3 * numbers(1, tokens, E)).astype(dtype))


def test_of_equal_experts_the_first_are_chosen() -> None:
    """Some equal, all equal, and most of no probability at all."""
    few = jnp.round(numbers(1, 20, E))
    sure = jnp.zeros((20, E)).at[:, 7].set(1000.0)
    for score_AE in (few, jnp.zeros((20, E)), sure):
        agrees(score_AE)


def test_a_token_without_numbers_disturbs_no_other() -> None:
    """It must choose as many experts as others do, for each has room for its rows."""
    score_AE = numbers(1, 20, E)
    broken = choose(score_AE.at[3, 5].set(jnp.nan), jnp.ones(E), X)
    assert len(set(np.asarray(broken.expert_AX[3]))) == X
    others = np.arange(20) != 3
    np.testing.assert_array_equal(broken.weight_AX[others], choose(score_AE, jnp.ones(E), X).weight_AX[others])
    assert np.sum(broken.count_YE) == 20 * X


def uneven(tokens: int) -> jax.Array:
    """Expert 3 is likely, and the last few are never chosen."""
    return choose(numbers(2, tokens, E).at[:, 3].add(2).at[:, -3:].set(-9), jnp.ones(E), X).expert_AX


def one_crowd(tokens: int) -> jax.Array:
    """All tokens choose the same experts, the last among them."""
    return jnp.tile(jnp.array([E - 1, 2, 9, 0], jnp.int32), (tokens, 1))


def alike(found: Blocks, wanted: Blocks) -> None:
    np.testing.assert_array_equal(found.expert_J, wanted.expert_J)
    np.testing.assert_array_equal(found.row_AX, wanted.row_AX)
    used_Z = np.repeat(np.asarray(wanted.expert_J) < E, ROWS)
    np.testing.assert_array_equal(np.asarray(found.token_Z)[used_Z], np.asarray(wanted.token_Z)[used_Z])


@pytest.mark.parametrize("experts", [uneven, one_crowd])
@pytest.mark.parametrize("tokens", [1, 48, 75])
def test_the_kernel_cuts_the_plain_blocks(experts: object, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where choices and counts are gone through in several parts."""
    expert_AX = experts(tokens)  # type: ignore[operator]
    most = tokens * X // ROWS + min(E, tokens * X)
    wanted = blocks_plainly(expert_AX, E, ROWS, most)
    alike(cut(expert_AX, count(expert_AX, E), ROWS, most), wanted)
    monkeypatch.setattr(routing_kernels, "CHOICES", 64)
    monkeypatch.setattr(routing_kernels, "TILES", 2)
    alike(cut(expert_AX, count(expert_AX, E), ROWS, most), wanted)


def test_experts_are_cut_by_the_kernel_where_all_of_them_are_here(monkeypatch: pytest.MonkeyPatch) -> None:
    expert_AX = uneven(20)
    routing = Routing(expert_AX, jnp.ones(expert_AX.shape), jnp.zeros((20, E)), count(expert_AX, E))
    calls: list[int] = []

    def watched(*arguments: object) -> Blocks:
        calls.append(1)
        return cut(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(moe_grouped, "cut", watched)
    plain = moe_grouped._blocks(routing._replace(count_YE=None), E)
    moe_grouped._blocks(routing, E // 2)
    assert not calls, "who has some of the experts, or whose tokens are not counted"
    np.testing.assert_array_equal(moe_grouped._blocks(routing, E).row_AX, plain.row_AX)
    assert calls == [1]


def test_it_takes_many_experts_of_a_power_of_two_where_kernels_run(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not fits(128, 8)
    monkeypatch.setattr(gpu, "runs_kernels", lambda: True)
    assert fits(128, 8)
    assert not fits(96, 8) and not fits(32, 8) and not fits(8, 1)


@pytest.fixture
def layer_router(monkeypatch: pytest.MonkeyPatch) -> Router:
    """A router that would run on a GPU."""
    monkeypatch.setattr(router, "fits", lambda E, X: True)
    config: TextConfig = DIFFUSION_GEMMA_26B_A4B.text
    small = {"hidden_size": 16, "num_experts": E, "top_k_experts": X}
    return Router(config.__class__(**{**vars(config), **small}), nnx.Rngs(0), jnp.dtype("float32"))


def test_a_router_chooses_by_the_kernel_on_one_device(layer_router: Router) -> None:
    x_AD = numbers(4, 24, 16)
    by_kernel = layer_router(x_AD)
    layer_router.mesh = jax.make_mesh((1,), ("data",))
    plain = layer_router(x_AD)
    assert by_kernel.count_YE is not None and plain.count_YE is None
    np.testing.assert_array_equal(by_kernel.expert_AX, plain.expert_AX)
    np.testing.assert_allclose(by_kernel.weight_AX, plain.weight_AX, rtol=ROUNDING)


def test_gradients_go_through_the_plain_router(layer_router: Router) -> None:
    def loss(x_AD: jax.Array) -> jax.Array:
        routing = layer_router(x_AD)
        return jnp.sum(routing.weight_AX**2) + jnp.sum(routing.probability_AE**2)

    x_AD = numbers(4, 24, 16)
    by_kernel = jax.grad(loss)(x_AD)
    layer_router.mesh = jax.make_mesh((1,), ("data",))
    np.testing.assert_allclose(by_kernel, jax.grad(loss)(x_AD), rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")
@pytest.mark.parametrize("tokens", [16, 256, 4096])
def test_both_kernels_of_the_published_sizes_lower_for_cuda_without_a_device(
    tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = DIFFUSION_GEMMA_26B_A4B.text
    experts, chosen = config.num_experts, config.top_k_experts

    def route(score_AE: jax.Array, scale_E: jax.Array) -> Blocks:
        choice = choose(score_AE, scale_E, chosen)
        return cut(choice.expert_AX, choice.count_YE, 32, tokens * chosen // 32 + min(experts, tokens * chosen))

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    score, scale = (jax.ShapeDtypeStruct((*rows, experts), jnp.bfloat16) for rows in ((tokens,), ()))
    with h200():
        text = jax.jit(route).trace(score, scale).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("triton") == 2
