"""Products with weights, and what the compiler is told of them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from dgemma_jax.model.parameter import apart
from dgemma_jax.model.quantized import Quantized


def test_products_of_the_same_tokens_stay_apart_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """XLA would copy full weights side by side at every step; quantised ones it widens as it reads them."""
    x, full = jnp.ones((4, 32)), jnp.ones((8, 32))
    quantised = Quantized(jnp.zeros((8, 32), jnp.int8), jnp.ones(8), 8)

    def barriers(weight: object) -> int:
        return str(jax.make_jaxpr(lambda x: apart("ad,fd->af", x, weight))(x)).count("optimization_barrier")  # type: ignore[arg-type]

    assert (barriers(full), barriers(quantised)) == (0, 0)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert (barriers(full), barriers(quantised)) == (1, 0)
