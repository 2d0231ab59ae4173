"""A request's sampler settings as arrays, one entry a row: rows of one batch may differ."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from dgemma_jax.config import GenerationConfig
from dgemma_jax.sampling.options import PLAIN, SamplingOptions
from dgemma_jax.sampling.truncation import Truncation


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Settings:
    """See `GenerationConfig` and `SamplingOptions` for the meaning.

    pin_BL: tokens that canvas positions are held to, -1 where the model decides; None decides all. See `pins.py`.

    The stability threshold fixes a shape and is the same for all rows. So is whether hidden states are kept for
    log-probabilities, and whether there is a truncation: what no row asks for is not in the program.
    """

    max_steps_B: jax.Array
    entropy_bound_B: jax.Array
    t_min_B: jax.Array
    t_max_B: jax.Array
    confidence_threshold_B: jax.Array
    truncation: Truncation | None
    stability_threshold: int = dataclasses.field(metadata={"static": True})
    logprobs: bool = dataclasses.field(metadata={"static": True})
    pin_BL: jax.Array | None = None

    @classmethod
    def of(cls, config: GenerationConfig, rows: int, options: SamplingOptions = PLAIN) -> Settings:
        """The same settings for every row."""

        def full(value: float) -> jax.Array:
            return jnp.full(rows, value, jnp.float32)

        return cls(
            max_steps_B=jnp.full(rows, config.max_denoising_steps, jnp.int32),
            entropy_bound_B=full(config.entropy_bound),
            t_min_B=full(config.t_min),
            t_max_B=full(config.t_max),
            confidence_threshold_B=full(config.confidence_threshold),
            truncation=Truncation.of([options] * rows),
            stability_threshold=config.stability_threshold,
            logprobs=options.logprobs is not None,
        )
