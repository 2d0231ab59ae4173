"""The grouped product for TPUs: interpreted here, and lowered for one."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import ROUNDING

from dgemma_jax.config import DIFFUSION_GEMMA_26B_A4B
from dgemma_jax.model import moe_gmm
from dgemma_jax.model.moe import all_experts
from dgemma_jax.model.moe_gmm import gmm
from dgemma_jax.model.router import Routing

E, D, F, A = 6, 32, 48, 70


def numbers(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape) * shape[-1] ** -0.5, jnp.float32)


X_AD, GATE_UP, DOWN = numbers(1, A, D), numbers(2, E, 2 * F, D), numbers(3, E, D, F)


def routing_of(experts: np.ndarray) -> Routing:
    weights = np.random.default_rng(0).uniform(0.1, 2, experts.shape)
    return Routing(jnp.asarray(experts, jnp.int32), jnp.asarray(weights, jnp.float32), jnp.zeros((len(experts), E)))


CROWDED = routing_of(np.stack([np.zeros(A, int), 1 + np.arange(A) % (E - 1)], axis=1))
FEW = routing_of(np.tile([2, 4], (A, 1)))
run = jax.jit(gmm)


@pytest.mark.parametrize("routing", [CROWDED, FEW], ids=["crowded", "few"])
def test_an_expert_with_many_rows_and_one_with_none_are_summed_alike(routing: Routing) -> None:
    wanted = all_experts(X_AD, routing, GATE_UP, DOWN)
    np.testing.assert_allclose(run(X_AD, routing, GATE_UP, DOWN), wanted, rtol=0, atol=ROUNDING)


def test_choices_of_experts_elsewhere_count_for_nothing() -> None:
    here = CROWDED.expert_AX < 3
    weight_AX = jnp.where(here, CROWDED.weight_AX, 0)
    local = CROWDED._replace(expert_AX=jnp.where(here, CROWDED.expert_AX, 3), weight_AX=weight_AX)
    wanted = all_experts(X_AD, CROWDED._replace(weight_AX=weight_AX), GATE_UP, DOWN)
    np.testing.assert_allclose(run(X_AD, local, GATE_UP[:3], DOWN[:3]), wanted, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_both_products_of_the_published_sizes_lower_for_a_tpu_without_one(
    dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moe_gmm, "_interpreted", lambda: False)
    config = DIFFUSION_GEMMA_26B_A4B.text
    experts, width, hidden = config.num_experts, config.hidden_size, config.moe_intermediate_size
    chosen = jax.ShapeDtypeStruct((256, config.top_k_experts), jnp.int32)
    routing = Routing(chosen, jax.ShapeDtypeStruct(chosen.shape, jnp.float32), jax.ShapeDtypeStruct((), jnp.float32))
    shapes = [(256, width), (experts, 2 * hidden, width), (experts, width, hidden)]
    x_AD, gate_up, down = (jax.ShapeDtypeStruct(shape, jnp.dtype(dtype)) for shape in shapes)
    lowered = jax.jit(gmm).trace(x_AD, routing, gate_up, down).lower(lowering_platforms=("tpu",))
    assert lowered.as_text().count("tpu_custom_call") == 2
