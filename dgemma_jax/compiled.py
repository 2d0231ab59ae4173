"""The jitted programs: what runs on the device, each compiled once per shape.

They take the model as `flat` lays it out: hashing its graph and walking its parameters at every call takes longer than
a small model's step.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from dgemma_jax import cache as kv
from dgemma_jax.config import TextConfig
from dgemma_jax.model.diffusion_gemma import DiffusionGemma
from dgemma_jax.sampling import denoise as loop
from dgemma_jax.sampling import head
from dgemma_jax.sampling.draws import Draws, KeyedDraws, row_keys
from dgemma_jax.sampling.logprobs import Logprobs, logprobs
from dgemma_jax.sampling.settings import Settings
from dgemma_jax.sharding import everywhere, pin_cache

OVERLAPPED = {"xla_gpu_command_buffer_scheduling_mode": "CONCURRENT"}
"""How steps are compiled: on a GPU kernels that need not wait for each other run beside each other, as those of the
dense MLP beside the experts', which wait for memory. CPUs ignore the option."""


@dataclasses.dataclass(frozen=True, eq=False)
class Structure:
    """A model without its numbers: compared by identity, which costs nothing."""

    graphdef: nnx.GraphDef
    treedef: jax.tree_util.PyTreeDef

    def model(self, numbers: list[jax.Array]) -> DiffusionGemma:
        """The model with the numbers that `flat` took out of it."""
        return nnx.merge(self.graphdef, jax.tree.unflatten(self.treedef, numbers))


_structure = functools.cache(Structure)  # the same for the same model: nothing is compiled twice


def flat(graphdef: nnx.GraphDef, params: nnx.State) -> tuple[Structure, list[jax.Array]]:
    """Structure and numbers of a model, as the programs take it. This costs milliseconds: once a model, not a call."""
    numbers, treedef = jax.tree.flatten(params)
    return _structure(graphdef, treedef), numbers


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def encode(
    structure: Structure,
    numbers: list[jax.Array],
    cache: kv.Cache,
    tokens_BT: jax.Array,
    count_B: jax.Array,
    soft_BTD: jax.Array | None = None,
) -> kv.Cache:
    """See `DiffusionGemma.encode`. The cache is donated: it is written in place and must not be used again."""
    return structure.model(numbers).encode(cache, tokens_BT, count_B, soft_BTD)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def commit(
    structure: Structure, numbers: list[jax.Array], cache: kv.Cache, canvas_BL: jax.Array, ended_B: jax.Array
) -> kv.Cache:
    """Reads a canvas of every row, unless all rows have ended. The cache is donated, as in `encode`."""
    length_B = jnp.full(len(canvas_BL), canvas_BL.shape[1], jnp.int32)
    return structure.model(numbers).encode(cache, canvas_BL, jnp.where(jnp.all(ended_B), 0, length_B))


@jax.jit
def ended(canvas_BL: jax.Array, before_B: jax.Array | None, ends_N: jax.Array) -> jax.Array:
    """Which rows have an end token now or had one before."""
    now_B = jnp.any(jnp.isin(canvas_BL, ends_N), axis=1)
    return now_B if before_B is None else now_B | before_B


@functools.partial(jax.jit, static_argnums=0)
def soft_tokens(
    structure: Structure, numbers: list[jax.Array], patches_INP: jax.Array, positions_IN2: jax.Array
) -> jax.Array:
    """Images through the vision tower: all their soft tokens in order, [I * M, D], padding last."""
    tower = structure.model(numbers).vision
    assert tower is not None, "there are no patches without a vision tower"
    soft = tower(patches_INP, positions_IN2)
    order_Z = jnp.argsort(~soft.real_IM.reshape(-1))  # stable: the real ones first, in order
    return soft.soft_IMD.reshape(-1, soft.soft_IMD.shape[-1])[order_Z]


@functools.partial(jax.jit, static_argnums=0)
def denoise_logits(
    structure: Structure,
    numbers: list[jax.Array],
    cache: kv.Cache,
    canvas_BL: jax.Array,
    previous_logits_BLV: jax.Array | None,
) -> jax.Array:
    """One denoising pass: float32 logits [B, L, V]."""
    model = structure.model(numbers)
    soft_BLD = None if previous_logits_BLV is None else head.soft_embedding(model.text, previous_logits_BLV)
    return model.text.logits(model.denoise(cache, canvas_BL, soft_BLD))


class Denoised(NamedTuple):
    """One canvas of every row: its tokens, the steps it took, and log-probabilities where the settings ask for them."""

    canvas_BL: jax.Array
    step_B: jax.Array
    logprobs: Logprobs | None = None


@functools.partial(jax.jit, static_argnums=0, compiler_options=OVERLAPPED)
def denoise_canvas(
    structure: Structure,
    numbers: list[jax.Array],
    cache: kv.Cache,
    settings: Settings,
    seed_B2: jax.Array,
    canvas_index_B: jax.Array,
) -> Denoised:
    """One canvas of every row, from noise to its end: the argmax of its last prediction."""
    model = structure.model(numbers)
    config = model.config
    draws = KeyedDraws(row_keys(seed_B2, canvas_index_B), config.canvas_length, config.text.vocab_size)
    state = loop.denoise(model, cache, settings, draws)
    # After the loop, so that the vocabulary is ranked once a canvas and not once a step.
    scored = None if state.x_BLD is None else logprobs(model.text, state.x_BLD, state.argmax_BL)
    return everywhere(Denoised(state.argmax_BL, state.step_B, scored), model.text.mesh)


@functools.partial(jax.jit, static_argnums=0, compiler_options=OVERLAPPED)
def denoise_step(
    structure: Structure, numbers: list[jax.Array], cache: kv.Cache, state: loop.State, settings: Settings, draws: Draws
) -> loop.State:
    """A single step, for those who want to look between steps."""
    return loop.step(structure.model(numbers), cache, state, settings, draws)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def empty(config: TextConfig, rows: int, capacity: int, dtype: jnp.dtype, mesh: Mesh | None) -> kv.Cache:
    """See `cache.empty`. Each device makes its own part."""
    return pin_cache(kv.empty(config, rows, capacity, dtype), mesh)


@functools.partial(jax.jit, static_argnums=(1, 2))
def grow(cache: kv.Cache, capacity: int, window: int) -> kv.Cache:
    """See `cache.grow`."""
    return kv.grow(cache, capacity, window)
