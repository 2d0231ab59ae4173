"""The temperature of each denoising step."""

from __future__ import annotations

import jax

from dgemma_jax.sampling.settings import Settings


def temperature(step_B: jax.Array, settings: Settings) -> jax.Array:
    """Linear in the steps that remain: `t_max` at step 0, one step short of `t_min` at the last. [B]"""
    remaining_B = (settings.max_steps_B - step_B) / settings.max_steps_B
    return settings.t_min_B + (settings.t_max_B - settings.t_min_B) * remaining_B
