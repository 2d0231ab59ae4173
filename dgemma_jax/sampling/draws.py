"""The random draws of a request. They depend on its seed, the canvas's index and the step: on nothing else."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp


class StepDraws(NamedTuple):
    """For each canvas position, a number in [0, 1) that picks from the prediction, and a fresh random token."""

    uniform_BL: jax.Array
    token_BL: jax.Array


class Draws(Protocol):
    """Where the loop gets its randomness; tests put recorded numbers here."""

    def canvas(self) -> jax.Array: ...

    def step(self, step_B: jax.Array) -> StepDraws: ...


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KeyedDraws:
    """Draws from one key per row, made by `row_keys`."""

    key_B: jax.Array
    canvas_length: int = dataclasses.field(metadata={"static": True})
    vocab_size: int = dataclasses.field(metadata={"static": True})

    def canvas(self) -> jax.Array:
        """The canvas before the first step: uniform over the whole vocabulary, [B, L]."""
        return jax.vmap(lambda key: self._tokens(jax.random.fold_in(key, 0)))(self.key_B)

    def step(self, step_B: jax.Array) -> StepDraws:
        """Draws of each row's step, counted from 0."""

        def draw(key: jax.Array, step: jax.Array) -> StepDraws:
            pick, renoise = jax.random.split(jax.random.fold_in(key, step + 1))
            return StepDraws(jax.random.uniform(pick, (self.canvas_length,)), self._tokens(renoise))

        return jax.vmap(draw)(self.key_B, step_B)

    def _tokens(self, key: jax.Array) -> jax.Array:
        return jax.random.randint(key, (self.canvas_length,), 0, self.vocab_size, jnp.int32)


def row_keys(seed_B2: jax.Array, canvas_B: jax.Array) -> jax.Array:
    """One key a row, from the request's seed (low and high half, uint32) and the index of its canvas."""

    def key(seed_2: jax.Array, canvas: jax.Array) -> jax.Array:
        whole = jax.random.fold_in(jax.random.key(seed_2[0]), seed_2[1])
        return jax.random.fold_in(whole, canvas)

    return jax.vmap(key)(seed_B2, canvas_B)
