"""A GPU to lower programs for where there is none."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import jax
from jax.sharding import AbstractMesh


def h200() -> AbstractContextManager[object]:
    """A context in which Pallas' kernels lower for that card; newer versions of JAX want to be told of it."""
    device = getattr(jax.sharding, "AbstractDevice", None)
    if device is None:
        return nullcontext()
    described = device("NVIDIA H200", 132, "gpu")
    return jax.sharding.use_abstract_mesh(AbstractMesh((1,), ("x",), abstract_device=described))
