"""On many devices: the same logits, the same tokens, and no more talk between them than the design says."""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tolerances import REORDERED, ROUNDING

from dgemma_jax import GenerationConfig, Model, compiled, sharding
from dgemma_jax.config import FULL, SLIDING, ModelConfig, TextConfig
from dgemma_jax.model.diffusion_gemma import DiffusionGemma
from dgemma_jax.model.expert_parallel import over_mesh
from dgemma_jax.model.moe import BACKENDS, all_experts
from dgemma_jax.model.router import Routing
from dgemma_jax.sampling import denoise
from dgemma_jax.sampling.draws import KeyedDraws, row_keys
from dgemma_jax.sampling.options import SamplingOptions
from dgemma_jax.sampling.settings import Settings

TEXT = TextConfig(
    vocab_size=96,
    hidden_size=32,
    intermediate_size=24,
    moe_intermediate_size=16,
    num_experts=8,
    top_k_experts=2,
    num_attention_heads=8,
    num_key_value_heads=4,
    num_global_key_value_heads=2,
    head_dim=8,
    global_head_dim=16,
    layer_types=(SLIDING, FULL),
    sliding_window=6,
    max_position_embeddings=256,
)
CONFIG = ModelConfig(text=TEXT, vision=None, canvas_length=8)
SETTINGS = GenerationConfig(max_denoising_steps=4, entropy_bound=2.0, eos_token_ids=(1,))
ROWS, LENGTH = 4, CONFIG.canvas_length  # one shape for prompts and commits: one program
TOKENS = np.arange(ROWS * LENGTH).reshape(ROWS, LENGTH) + 3
CANVAS = np.arange(ROWS * CONFIG.canvas_length).reshape(ROWS, -1) + 7
SIZES = (1, 2, 4, 8)
MESHES = [
    f"data={data},expert={expert},model={heads}"
    for data, expert, heads in itertools.product(SIZES, repeat=3)
    if data * expert * heads <= 8 and data <= ROWS
]
"""All that eight devices can make."""


@functools.cache
def model(wanted: str | None) -> Model:
    """The same weights on the devices of a mesh."""
    mesh = sharding.make_mesh(wanted, TEXT)
    module = DiffusionGemma(CONFIG, nnx.Rngs(0), jnp.dtype("float32"), "expert_blocks")
    graphdef, params = nnx.split(sharding.spread(module, mesh))
    return Model(CONFIG, SETTINGS, None, None, jnp.dtype("float32"), graphdef, sharding.place(params, mesh), mesh)


@functools.cache
def logits(wanted: str | None) -> np.ndarray:
    """Behind a prompt and a committed canvas, conditioned on a prediction."""
    made = model(wanted)
    cache = made.commit(made.prefill(TOKENS), CANVAS)
    previous = np.random.default_rng(0).normal(size=(*CANVAS.shape, TEXT.vocab_size)) * 3
    return np.asarray(made.denoise_logits(cache, CANVAS, previous))


@pytest.mark.parametrize("wanted", MESHES)
def test_logits_are_those_of_one_device(wanted: str) -> None:
    np.testing.assert_allclose(logits(wanted), logits(None), atol=REORDERED)


@pytest.mark.parametrize(
    ("wanted", "options"),
    [
        ("expert=8", SamplingOptions(logprobs=2, top_k=20, top_p=0.9)),
        ("data=2,expert=2,model=2", SamplingOptions(logprobs=2)),
    ],
)
def test_a_seed_gives_the_tokens_of_one_device(wanted: str, options: SamplingOptions) -> None:
    ask = functools.partial(Model.generate, max_new_tokens=20, seed=5, options=options)
    found, expected = ask(model(wanted), TOKENS), ask(model(None), TOKENS)
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_array_equal(found.steps, expected.steps)
    for ours, theirs in zip(found.logprobs or (), expected.logprobs or (), strict=True):
        assert [one.logprob for one in ours] == pytest.approx([one.logprob for one in theirs], abs=REORDERED)


@pytest.mark.parametrize("wanted", ["expert=8", "data=2,expert=2,model=2"])
@pytest.mark.parametrize("backend", sorted(BACKENDS))
def test_experts_however_unevenly_chosen_sum_to_those_of_one_device(backend: str, wanted: str) -> None:
    mesh, rng = sharding.make_mesh(wanted, TEXT), np.random.default_rng(1)
    A, E, D, F = 24, TEXT.num_experts, 32, 16
    x_AD, gate_up_EFD, down_EDF = (
        jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((A, D), (E, 2 * F, D), (E, D, F))
    )
    run = jax.jit(over_mesh(BACKENDS[backend], mesh))
    even = np.stack([rng.permutation(E)[:2] for _ in range(A)])
    one_device = np.tile([5, 4], (A, 1))  # with eight devices all tokens go to two of them
    for expert_AX in (even, one_device, np.where(np.arange(A)[:, None] < 1, even, one_device)):
        routing = Routing(jnp.asarray(expert_AX), jnp.asarray(rng.random((A, 2)), jnp.float32), jnp.zeros((A, E)))
        found = run(x_AD, routing, gate_up_EFD / D**0.5, down_EDF / F**0.5)
        expected = all_experts(x_AD, routing, gate_up_EFD / D**0.5, down_EDF / F**0.5)
        np.testing.assert_allclose(found, expected, atol=ROUNDING)


def collectives(made: Model) -> collections.Counter[str]:
    """What one denoising step exchanges, by kind; each array counts, whether or not the compiler bundles them."""
    settings = Settings.of(SETTINGS, ROWS)
    seeds, canvases = jnp.zeros((ROWS, 2), jnp.uint32), jnp.zeros(ROWS, jnp.int32)
    draws = KeyedDraws(row_keys(seeds, canvases), made.config.canvas_length, made.config.text.vocab_size)
    state = denoise.start(nnx.merge(made.graphdef, made.params), draws, settings)
    cache = made.empty_cache(ROWS, 64)
    step = compiled.denoise_step.lower(*made.flat, cache, state, settings, draws).compile()
    kinds = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"
    counts: collections.Counter[str] = collections.Counter()
    for result, kind in re.findall(rf"= (.*?) ({kinds})(?:-start)?\(", step.as_text()):
        counts[kind] += len(re.findall(r"\w+\[", result))
    return counts


def designed(wanted: str, layers: int) -> collections.Counter[str]:
    """Sums: in each layer one of the experts, and with `model` one of attention and one of the MLP; one for the
    embeddings, and with `model` one of self-conditioning; two of the vocabulary, which also gathers once."""
    sizes = sharding.parse(wanted)
    divided = sizes["expert"] * sizes["model"] > 1
    sums = divided * (layers + 1 + 2) + (sizes["model"] > 1) * (2 * layers + 1)
    return collections.Counter({"all-reduce": sums, "all-gather": int(divided)})


@pytest.mark.parametrize("wanted", ["expert=8", "model=8", "data=2,expert=2,model=2"])
def test_a_step_exchanges_what_the_design_says_and_no_more(wanted: str) -> None:
    assert collectives(model(wanted)) == designed(wanted, len(TEXT.layer_types))


def test_caches_lie_over_rows_and_heads() -> None:
    made = model("data=2,expert=2,model=2")
    cache = made.prefill(TOKENS)
    for found, place in zip(
        jax.tree.leaves(cache), jax.tree.leaves(sharding.cache_sharding(cache, made.mesh)), strict=True
    ):
        assert found.sharding.is_equivalent_to(place, found.ndim)
    assert cache.layers[0].key_BKSC.sharding.shard_shape(cache.layers[0].key_BKSC.shape)[:2] == (2, 2)


def test_embeddings_of_tokens_are_exact_to_the_bit() -> None:
    whole, spread = (nnx.merge(made.graphdef, made.params).text for made in (model(None), model("expert=8")))
    np.testing.assert_array_equal(jax.jit(spread.embed)(TOKENS), jax.jit(whole.embed)(TOKENS))


def test_a_mesh_changes_no_parameter() -> None:
    jax.tree.map(np.testing.assert_array_equal, model("model=8").params, model(None).params)
    assert dataclasses.replace(model("model=8"), mesh=None).graphdef != model(None).graphdef
