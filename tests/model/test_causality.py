"""What depends on what, by gradients that are exactly zero: no tolerance can hide a leak."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from golden import reading

from dgemma_jax.model import masks

T = 14
WINDOW = 6  # of the checkpoint "window6", whose layers are sliding, sliding, full


@functools.cache
def derivatives() -> Callable[[jax.Array], dict[str, jax.Array]]:
    """The compiled derivatives of hidden states and keys by the embeddings, for given image blocks."""
    model = reading.model("window6", backend="all_experts")
    text = nnx.merge(model.graphdef, model.params).text
    x_1TD = jnp.asarray(np.random.default_rng(0).normal(size=(1, T, text.config.hidden_size)), jnp.float32)

    def outputs(x_1TD: jax.Array, block_1T: jax.Array) -> dict[str, jax.Array]:
        positions = jnp.arange(T)[None]
        mask = masks.encoder_masks(None, positions, block_1T, WINDOW)
        output = text.run(x_1TD, positions, None, mask, "encoder")
        keys = {
            f"key_{index}": jnp.moveaxis(layer.key_BKSC[0], 0, 1).reshape(T, -1)
            for index, layer in enumerate(output.key_values)
        }
        # Cubes: the plain sum of a normed vector might not change.
        return {name: jnp.sum(value**3, axis=-1) for name, value in {"hidden": output.x_BTD[0], **keys}.items()}

    return functools.partial(jax.jit(jax.jacrev(outputs)), x_1TD)


@functools.cache
def influence(image: tuple[int, int] = (0, 0)) -> dict[str, np.ndarray]:
    """For hidden states and each layer's keys: [T, T], how much output t changes with input embedding s."""
    positions = jnp.arange(T)[None]
    block_1T = masks.image_blocks((positions >= image[0]) & (positions < image[1]))
    return {name: np.abs(value[:, 0]).max(axis=-1) for name, value in derivatives()(block_1T).items()}


def test_no_encoder_output_depends_on_a_later_token() -> None:
    for name, depends in influence().items():
        assert (np.triu(depends, 1) == 0).all(), name


def test_every_encoder_output_depends_on_every_earlier_token_that_can_reach_it() -> None:
    assert (np.tril(influence()["hidden"])[np.tril_indices(T)] > 0).all()


def test_sliding_layers_reach_back_one_window_each() -> None:
    query, key = np.indices((T, T))
    back = query - key
    depends = influence()
    for layers in (0, 1, 2):
        reach = layers * (WINDOW - 1)
        wanted = (back >= 0) & (back <= reach)
        np.testing.assert_array_equal(depends[f"key_{layers}"] > 0, wanted)


def test_tokens_of_an_image_reach_each_other_both_ways_and_nothing_else_looks_ahead() -> None:
    depends = influence(image=(3, 11))["hidden"] > 0
    query, key = np.indices((T, T))
    image = (query >= 3) & (query < 11) & (key >= 3) & (key < 11)
    np.testing.assert_array_equal(depends, (key <= query) | image)


def test_every_canvas_row_depends_on_every_other() -> None:
    model, golden = reading.model("window6", backend="all_experts"), reading.case("window6", "logits", "long")
    cache = model.prefill(golden["tokens"])
    before = np.asarray(model.denoise_logits(cache, golden["canvas"]))
    for position in range(8):
        canvas = golden["canvas"].copy()
        canvas[:, position] = (canvas[:, position] + 1) % 97
        changed = np.abs(np.asarray(model.denoise_logits(cache, canvas)) - before).max(axis=-1)
        assert (changed > 1e-3).all()


def test_reading_a_canvas_leaves_the_cache_as_it_is() -> None:
    model, golden = reading.model("window6", backend="all_experts"), reading.case("window6", "logits", "long")
    cache = model.prefill(golden["tokens"])
    before = jax.tree.map(np.array, cache)
    first = np.asarray(model.denoise_logits(cache, golden["canvas"]))
    model.denoise_logits(cache, golden["next_canvas"])
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, cache), before)
    np.testing.assert_array_equal(first, np.asarray(model.denoise_logits(cache, golden["canvas"])))


def test_rows_of_a_batch_do_not_see_each_other() -> None:
    model, golden = reading.model("window6", backend="all_experts"), reading.case("window6", "logits", "long")
    one = np.asarray(model.denoise_logits(model.prefill(golden["tokens"]), golden["canvas"]))
    tokens, canvas = golden["tokens"].copy(), golden["canvas"].copy()
    tokens[1], canvas[1] = tokens[1][::-1], canvas[1][::-1]
    other = np.asarray(model.denoise_logits(model.prefill(tokens), canvas))
    np.testing.assert_array_equal(one[0], other[0])
    assert np.abs(one[1] - other[1]).max() > 1
