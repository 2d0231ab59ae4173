"""What device programs run on, as far as kernels ask."""

from __future__ import annotations

import jax


def cuda_capability() -> int:
    """The major compute capability of the first device where programs run on NVIDIA GPUs, else 0."""
    major = str(getattr(jax.devices()[0], "compute_capability", "")).split(".")[0]
    return int(major) if jax.default_backend() == "gpu" and major.isdecimal() else 0
