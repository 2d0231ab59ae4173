"""What the compiled programs of a model of real proportions do and do not do. Nothing is run; no time decides."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from dgemma_jax import cache as kv
from dgemma_jax import compiled
from dgemma_jax.cache import Cache
from dgemma_jax.checkpoint.names import abstract_model
from dgemma_jax.config import MINI, GenerationConfig
from dgemma_jax.model.moe import choose_backend
from dgemma_jax.model.moe_blocks import BLOCK_ROWS
from dgemma_jax.sampling import denoise
from dgemma_jax.sampling.draws import KeyedDraws, row_keys
from dgemma_jax.sampling.heads import choose_head
from dgemma_jax.sampling.settings import Settings
from tools import roofline
from tools.module_cost import made, matrix_flops

CAPACITY, CONTEXT = 2048, 512
CANVAS, TEXT = MINI.canvas_length, MINI.text
MOST_BLOCKS = CANVAS * TEXT.top_k_experts // BLOCK_ROWS + TEXT.num_experts
SEED, INDEX = jnp.zeros((1, 2), jnp.uint32), jnp.zeros(1, jnp.int32)


@functools.cache
def parts(platform: str = "cpu") -> tuple[nnx.GraphDef, nnx.State, Cache]:
    """Structure, and shapes for parameters and cache."""
    backend = choose_backend(TEXT, platform)
    graphdef, params = nnx.split(abstract_model(MINI, jnp.dtype("float32"), backend, choose_head(TEXT)))
    return graphdef, params, jax.eval_shape(lambda: kv.empty(TEXT, 1, CAPACITY, jnp.dtype("float32")))


def traced_step(platform: str = "cpu") -> jax.stages.Traced:
    graphdef, params, cache = parts(platform)
    draws = KeyedDraws(row_keys(SEED, INDEX), CANVAS, TEXT.vocab_size)
    settings = Settings.of(GenerationConfig(), 1)
    state = jax.eval_shape(lambda params: denoise.start(nnx.merge(graphdef, params), draws, settings), params)
    return compiled.denoise_step.trace(*compiled.flat(graphdef, params), cache, state, settings, draws)


@functools.cache
def step() -> jax.stages.Compiled:
    return traced_step().lower().compile()


@functools.cache
def encode() -> jax.stages.Compiled:
    graphdef, params, cache = parts()
    tokens = jax.ShapeDtypeStruct((1, CANVAS), jnp.dtype("int32"))
    return compiled.encode.lower(*compiled.flat(graphdef, params), cache, tokens, INDEX, None).compile()


@functools.cache
def commit() -> jax.stages.Compiled:
    graphdef, params, cache = parts()
    tokens, ended = jax.ShapeDtypeStruct((1, CANVAS), jnp.dtype("int32")), jnp.zeros(1, bool)
    return compiled.commit.lower(*compiled.flat(graphdef, params), cache, tokens, ended).compile()


@functools.cache
def canvas() -> jax.stages.Compiled:
    graphdef, params, cache = parts()
    return compiled.denoise_canvas.lower(
        *compiled.flat(graphdef, params), cache, Settings.of(GenerationConfig(), 1), SEED, INDEX
    ).compile()


def test_the_measured_model_is_what_it_is_said_to_be() -> None:
    _, params, _ = parts()
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == pytest.approx(0.49e9, rel=0.01)


def test_a_step_does_little_more_arithmetic_than_is_useful() -> None:
    """With the most blocks of experts that any routing can need."""
    useful = roofline.step(TEXT, CANVAS, CONTEXT, 4).flops
    assert useful <= matrix_flops(step().as_text(), MOST_BLOCKS) < 1.3 * useful


def test_a_step_takes_less_than_200_megabytes_of_temporaries() -> None:
    assert step().memory_analysis().temp_size_in_bytes < 200e6
    assert canvas().memory_analysis().temp_size_in_bytes < 200e6


def of_cache(text: str, only: str = "") -> set[tuple[int, ...]]:
    """Shapes of what is made that has the axes of keys or values, in any order; by operations named so, if any."""
    sizes = {tuple(sorted(layer.key_BKSC.shape)) for layer in parts()[2].layers}
    kinds = [kind for operation, kind in made(text) if operation.startswith(only)]
    found = {axes for kind in kinds for axes in re.findall(r"f32\[([\d,]+)\]", kind)}
    return {shape for axes in found if tuple(sorted(shape := tuple(map(int, axes.split(","))))) in sizes}


def test_a_step_makes_no_other_cache() -> None:
    """Nothing of a cache's axes is made, but for the keys of a layer, which XLA's CPU backend turns for their product.

    A commit, which writes a cache, is the counterexample.
    """
    shapes = {layer.key_BKSC.shape for layer in parts()[2].layers}
    turned = {(B, K, C, S) for B, K, S, C in shapes}
    assert of_cache(step().as_text()) <= turned
    assert of_cache(canvas().as_text()) <= turned
    assert shapes <= of_cache(commit().as_text())


@pytest.mark.parametrize("program", [encode, commit])
def test_tokens_are_read_into_the_cache_where_it_lies(program: Callable[[], jax.stages.Compiled]) -> None:
    """Its memory becomes the result's, and no layer of it is copied on the way there."""
    _, _, cache = parts()
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache.layers))
    assert program().memory_analysis().alias_size_in_bytes >= size
    assert not of_cache(program().as_text(), "copy") & {layer.key_BKSC.shape for layer in cache.layers}


def test_a_commit_has_no_head() -> None:
    useful = roofline.layers(TEXT, CANVAS, CONTEXT, 4).flops
    found = matrix_flops(commit().as_text(), MOST_BLOCKS)
    assert useful / 2 < found < 1.8 * useful < roofline.head(TEXT, CANVAS, 4).flops


def test_a_canvas_never_waits_for_the_host() -> None:
    operations = {operation for operation, _ in made(canvas().as_text())}
    assert not operations & {"infeed", "outfeed", "send", "recv", "send-done", "recv-done"}
    assert "callback" not in canvas().as_text()


def test_a_step_can_be_lowered_for_a_gpu_without_one() -> None:
    """With its own backend for the experts, and neither callbacks nor the ragged product, which would be expanded."""
    text = traced_step("gpu").lower(lowering_platforms=("cuda",)).as_text()
    assert "stablehlo.case" in text, "the experts' capacity is chosen on the device"
    assert "callback" not in text and "ragged_dot" not in text
