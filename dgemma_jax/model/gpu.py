"""What device programs run on, as far as kernels ask."""

from __future__ import annotations

import jax

LEAST_CAPABILITY = 8
"""Of CUDA devices those that XLA compiles Pallas' Triton kernels for: Ampere and later."""


def cuda_capability() -> int:
    """The major compute capability of the first device where programs run on NVIDIA GPUs, else 0."""
    major = str(getattr(jax.devices()[0], "compute_capability", "")).split(".")[0]
    return int(major) if jax.default_backend() == "gpu" and major.isdecimal() else 0


def runs_kernels() -> bool:
    """Whether programs may hold Pallas' Triton kernels."""
    return cuda_capability() >= LEAST_CAPABILITY
