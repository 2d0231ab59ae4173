"""The training pass is the serving pass: same numbers, no leaks, no padding, no other canvas."""

import dataclasses
import json
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dgemma_jax import cache as kv
from dgemma_jax.config import FULL, SLIDING, ModelConfig, TextConfig
from dgemma_jax.model.diffusion_gemma import DiffusionGemma
from dgemma_jax.model.masks import block_diffusion_masks
from dgemma_jax.model.text import TextModel
from dgemma_jax.training import head
from dgemma_jax.training import objective as objective_module
from dgemma_jax.training.corruption import MOST_SHIFTED, corrupt, noise_levels, shift_ends
from dgemma_jax.training.objective import Batch, Objective, canvas_layout, loss, own_canvases
from dgemma_jax.training.rows import BatchStream, Bucket, Position, Row, stack

CANVAS, BLOCKS, PREFIX, VOCABULARY = 4, 3, 9, 50
LENGTH = PREFIX + BLOCKS * CANVAS
CONFIG = ModelConfig(
    text=TextConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=24,
        moe_intermediate_size=16,
        num_experts=4,
        top_k_experts=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_global_key_value_heads=1,
        head_dim=8,
        global_head_dim=16,
        layer_types=(SLIDING, FULL),
        sliding_window=6,
        max_position_embeddings=64,
    ),
    vision=None,
    canvas_length=CANVAS,
)


@pytest.fixture(scope="module")
def model() -> DiffusionGemma:
    return DiffusionGemma(CONFIG, nnx.Rngs(0), jnp.dtype("float32"))


@pytest.fixture(scope="module")
def tokens() -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).integers(0, VOCABULARY, (2, LENGTH)), jnp.int32)


@pytest.fixture(scope="module")
def noisy() -> jax.Array:
    return jnp.asarray(np.random.default_rng(1).integers(0, VOCABULARY, (2, 2 * BLOCKS * CANVAS)), jnp.int32)


@nnx.jit
def joint_logits(model: DiffusionGemma, tokens_BS: jax.Array, noisy_BR: jax.Array) -> jax.Array:
    """Logits of two noise copies of three canvases in one pass over the clean sequence."""
    block_R, copy_R = canvas_layout(BLOCKS, 2, CANVAS)
    prefix_B = jnp.full(len(tokens_BS), PREFIX)
    position_BR = prefix_B[:, None] + (block_R * CANVAS + jnp.arange(len(block_R)) % CANVAS)[None]
    S = tokens_BS.shape[1]
    clean = model.read(tokens_BS, jnp.broadcast_to(jnp.arange(S)[None], tokens_BS.shape), None)
    masks = block_diffusion_masks(prefix_B, block_R, copy_R, CANVAS, S, CONFIG.text.sliding_window)
    x_BRD = model.text.self_conditioning(model.text.embed(noisy_BR), None)
    return model.text.logits(model.text.run(x_BRD, position_BR, clean.key_values, masks, "decoder").x_BTD)


@nnx.jit
def served_logits(model: DiffusionGemma, tokens_BS: jax.Array, end_B: jax.Array, canvas_BL: jax.Array) -> jax.Array:
    """Logits of a canvas behind the first `end_B` tokens, as generation computes them."""
    cache = model.encode(kv.empty(CONFIG.text, 2, LENGTH, jnp.dtype("float32")), tokens_BS, end_B)
    return model.text.logits(model.denoise(cache, canvas_BL, None))


jitted_loss = nnx.jit(loss, static_argnums=3)


def test_a_canvas_gets_the_logits_that_generation_would_give_it(model, tokens, noisy) -> None:
    joint_BRV = joint_logits(model, tokens, noisy)
    for block in range(BLOCKS):
        end = PREFIX + block * CANVAS
        for copy in range(2):
            span = slice((copy * BLOCKS + block) * CANVAS, (copy * BLOCKS + block + 1) * CANVAS)
            alone_BLV = served_logits(model, tokens, jnp.full(2, end), noisy[:, span])
            np.testing.assert_allclose(joint_BRV[:, span], alone_BLV, atol=1e-5)


@pytest.mark.parametrize("block", range(BLOCKS))
def test_a_canvas_does_not_see_its_own_clean_tokens_or_later_ones(model, tokens, noisy, block) -> None:
    end = PREFIX + block * CANVAS
    changed = tokens.at[:, end:].set((tokens[:, end:] + 1) % VOCABULARY)
    before, after = joint_logits(model, tokens, noisy), joint_logits(model, changed, noisy)
    spans = [slice((copy * BLOCKS + block) * CANVAS, (copy * BLOCKS + block + 1) * CANVAS) for copy in range(2)]
    for span in spans:
        np.testing.assert_array_equal(before[:, span], after[:, span])
    if block:
        assert not np.array_equal(before, joint_logits(model, tokens.at[:, end - 1].add(1) % VOCABULARY, noisy))


def test_a_canvas_does_not_see_other_canvases_or_other_copies(model, tokens, noisy) -> None:
    span = slice(CANVAS, 2 * CANVAS)
    changed = ((noisy + 1) % VOCABULARY).at[:, span].set(noisy[:, span])
    before, after = joint_logits(model, tokens, noisy), joint_logits(model, tokens, changed)
    np.testing.assert_array_equal(before[:, span], after[:, span])
    assert not np.array_equal(before, after)


def test_the_gradient_of_a_canvas_reaches_the_clean_tokens_before_it_and_no_others(model, tokens, noisy) -> None:
    graphdef, params = nnx.split(model)

    def first_canvas_score(embedding_SD: jax.Array) -> jax.Array:
        # A vocabulary of its own for the clean tokens: gradients by position instead of by word.
        whole = jnp.concatenate([embedding_SD, params["text"]["embedding_VD"][...]])
        state = jax.tree.map(lambda x: x, params)
        state["text"]["embedding_VD"] = state["text"]["embedding_VD"].replace(whole)
        shifted = nnx.merge(graphdef, state)
        places = jnp.arange(LENGTH, dtype=jnp.int32)[None]
        return joint_logits(shifted, places, noisy[:1] + LENGTH)[:, CANVAS : 2 * CANVAS, LENGTH:].sum()

    gradient_SD = jax.jit(jax.grad(first_canvas_score))(params["text"]["embedding_VD"][...][tokens[0]])
    reached = np.any(np.asarray(gradient_SD) != 0, axis=1)
    assert reached[: PREFIX + CANVAS].all()
    assert not reached[PREFIX + CANVAS :].any()


def rows() -> list[Row]:
    rng = np.random.default_rng(2)
    return [Row(tuple(rng.integers(5, VOCABULARY, 7)), tuple(rng.integers(5, VOCABULARY, n))) for n in (3, 6, 4, 8)]


def test_an_untrained_model_is_about_as_good_as_guessing_the_next_token(model) -> None:
    _, metrics = jitted_loss(model, stack(rows(), 16, CONFIG, 1), jax.random.key(0), Objective(blocks=2))
    assert abs(float(metrics.next_token) - math.log(VOCABULARY)) < 1.0


def test_padding_changes_no_loss(model) -> None:
    losses = [
        jitted_loss(
            model, stack(rows(), length, CONFIG, 1), jax.random.key(0), Objective(blocks=2, balance_weight=0.0)
        )[1]
        for length in (15, 24)
    ]
    np.testing.assert_allclose(losses[0].denoising, losses[1].denoising, rtol=1e-5)
    np.testing.assert_allclose(losses[0].next_token, losses[1].next_token, rtol=1e-5)


def test_the_sliced_vocabulary_pass_equals_the_whole(model, monkeypatch) -> None:
    x_BTD = jax.random.normal(jax.random.key(0), (2, 7, CONFIG.text.hidden_size))
    target_BT = jnp.asarray(np.random.default_rng(0).integers(0, VOCABULARY, (2, 7)))

    def everything() -> tuple:
        def nll(x_BTD: jax.Array) -> tuple[jax.Array, jax.Array]:
            nll_BT, right_BT = head.token_losses(model.text, x_BTD, target_BT)
            return nll_BT.sum(), right_BT

        return jax.value_and_grad(nll, has_aux=True)(x_BTD), head.soft_embeddings(model.text, x_BTD)

    whole = everything()
    monkeypatch.setattr(head, "MOST_LOGITS", 2 * 3 * VOCABULARY)  # three positions at a time
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), everything(), whole)


def test_noise_levels_cover_their_range_evenly() -> None:
    t = np.sort(np.asarray(noise_levels(jax.random.key(0), (10, 10), 0.1)).ravel())
    assert t.min() >= 0.1 and t.max() < 1
    assert np.all(np.floor((t - 0.1) / 0.9 * 100 + 1e-4) == np.arange(100))


def test_corruption_replaces_the_asked_share_by_any_token() -> None:
    clean = jnp.full((100, 100), 7)
    noisy = np.asarray(corrupt(jax.random.key(0), clean, jnp.full((100, 100), 0.3), VOCABULARY))
    assert abs((noisy != 7).mean() - 0.3 * (1 - 1 / VOCABULARY)) < 0.02
    assert set(np.unique(noisy)) == set(range(VOCABULARY))
    np.testing.assert_array_equal(corrupt(jax.random.key(0), clean, jnp.zeros((100, 100)), VOCABULARY), clean)


def shifts(filled: int, length: int) -> set[tuple[int, ...]]:
    """What may become of the tokens 0, 1, 2 ... when their end is moved from one of the `filled` first places on."""
    last, found = length - 1, set()
    for start in range(filled):
        for by in (*range(-MOST_SHIFTED, 0), *range(1, MOST_SHIFTED + 1)):
            moved = [min(max(place - by, 0), last) for place in range(start, length)]
            found.add((*range(start), *moved))
    return found


def test_a_shifted_end_has_a_part_twice_or_lacks_one_from_any_written_place_on() -> None:
    tokens = jnp.broadcast_to(jnp.arange(10), (50, 40, 10))
    for filled in (1, 6, 10):
        shifted = np.asarray(shift_ends(jax.random.key(0), tokens, jnp.full((50, 40), filled), 1.0))
        assert set(map(tuple, shifted.reshape(-1, 10).tolist())) == shifts(filled, 10)


def test_only_the_asked_share_of_canvases_is_shifted() -> None:
    tokens = jnp.broadcast_to(jnp.arange(10), (50, 40, 10))
    shifted = np.asarray(shift_ends(jax.random.key(0), tokens, jnp.full((50, 40), 6), 0.3))
    assert abs((shifted != tokens).any(axis=-1).mean() - 0.3) < 0.03


def test_a_shifted_end_changes_what_is_denoised_and_not_what_is_read_or_wanted(model, monkeypatch) -> None:
    monkeypatch.setattr(objective_module, "noise_levels", lambda key, shape, t_min: jnp.zeros(shape))
    batch, key = stack(rows(), 16, CONFIG, 1), jax.random.key(3)
    seen: list[tuple] = []
    real = objective_module._denoise
    monkeypatch.setattr(objective_module, "_denoise", lambda *args: seen.append(args[2]) or real(*args))
    straight, shifted = (loss(model, batch, key, Objective(blocks=2, shifted=share))[1] for share in (0.0, 1.0))
    np.testing.assert_array_equal(seen[0].noisy_BR, seen[0].target_BR)
    np.testing.assert_array_equal(seen[1].target_BR, seen[0].target_BR)
    assert (seen[1].noisy_BR != seen[1].target_BR).mean() > 0.2
    assert straight.denoising != shifted.denoising
    assert straight.next_token == shifted.next_token


def written(model, monkeypatch, batch: Batch, share: float) -> tuple:
    """The canvases without noise, where that share holds mistakes, and the losses."""
    monkeypatch.setattr(objective_module, "noise_levels", lambda key, shape, t_min: jnp.zeros(shape))
    seen: list[tuple] = []
    real = objective_module._denoise
    monkeypatch.setattr(objective_module, "_denoise", lambda *args: seen.append(args[2]) or real(*args))
    metrics = loss(model, batch, jax.random.key(3), Objective(blocks=2, copies=2, mistaken=share))[1]
    return seen[0], metrics


def test_a_mistake_is_what_is_denoised_and_not_what_is_read_or_wanted(model, monkeypatch) -> None:
    right = rows()
    wrong = [dataclasses.replace(row, mistake=(9, *row.answer)) for row in right]
    straight, before = written(model, monkeypatch, stack(right, 16, CONFIG, 1), 1.0)
    mistaken, after = written(model, monkeypatch, stack(wrong, 16, CONFIG, 1), 1.0)
    np.testing.assert_array_equal(straight.noisy_BR, straight.target_BR)
    np.testing.assert_array_equal(mistaken.target_BR, straight.target_BR)
    for found, row in zip(mistaken.noisy_BR.tolist(), right, strict=True):
        end = row.blocks(CANVAS) * CANVAS
        answer = [9, *row.answer, *(1,) * CANVAS][:end]
        assert found[:end] == found[2 * CANVAS :][:end] == answer
    assert before.denoising != after.denoising
    assert before.next_token == after.next_token


def test_only_the_asked_share_of_canvases_holds_mistakes(model, monkeypatch) -> None:
    many = [
        dataclasses.replace(row, mistake=(9, *row.answer)) for _ in range(50) for row in rows() if row.blocks(4) > 1
    ]
    canvases, _ = written(model, monkeypatch, stack(many, 16, CONFIG, 1), 0.3)
    first = np.asarray(canvases.noisy_BR).reshape(len(many), 4, CANVAS)[..., 0]
    assert abs((first[:, [0, 2]] == 9).mean() - 0.3) < 0.08


def left_by_a_step(model: DiffusionGemma, noisy: jax.Array, share: float = 1.0) -> tuple[np.ndarray, ...]:
    """Canvases of the model's own making, and drawn tokens and entropies of the prediction that they were made of."""
    x_BRD = jax.random.normal(jax.random.key(6), (*noisy.shape, CONFIG.text.hidden_size))
    own = own_canvases(model, x_BRD, noisy, jax.random.key(7), share)
    uniform = jax.random.uniform(jax.random.split(jax.random.key(7), 4)[0], noisy.shape)
    drawn, entropy = head.drawn_tokens(model.text, x_BRD, uniform)
    return tuple(np.asarray(x).reshape(-1, CANVAS) for x in (own, noisy, drawn, entropy))


def test_a_bound_that_keeps_all_makes_a_canvas_of_drawn_tokens(model, noisy, monkeypatch) -> None:
    monkeypatch.setattr(objective_module, "OWN_BOUNDS", (1e6, 1e7))
    own, _, drawn, _ = left_by_a_step(model, noisy)
    np.testing.assert_array_equal(own, drawn)


def test_a_tight_bound_keeps_the_surest_drawn_token_and_makes_the_others_random(model, noisy, monkeypatch) -> None:
    monkeypatch.setattr(objective_module, "OWN_BOUNDS", (1e-9, 1e-8))
    own, before, drawn, entropy = left_by_a_step(model, noisy)
    kept = np.arange(CANVAS) == entropy.argmin(axis=1)[:, None]
    np.testing.assert_array_equal(own[kept], drawn[kept])
    for others in (drawn, before):
        assert (own[~kept] == others[~kept]).mean() < 0.2


def test_only_the_asked_share_of_canvases_is_the_models_own(model, monkeypatch) -> None:
    monkeypatch.setattr(objective_module, "OWN_BOUNDS", (1e6, 1e7))
    noisy = jnp.asarray(np.random.default_rng(4).integers(0, VOCABULARY, (40, 10 * CANVAS)), jnp.int32)
    own, before, drawn, _ = left_by_a_step(model, noisy, share=0.3)
    is_own, as_before = (own == drawn).all(1), (own == before).all(1)
    assert (is_own | as_before).all()
    assert abs(is_own.mean() - 0.3) < 0.1


def test_canvases_of_its_own_change_what_is_denoised_and_not_what_is_read(model) -> None:
    batch, key = stack(rows(), 16, CONFIG, 1), jax.random.key(3)
    published, own = (jitted_loss(model, batch, key, Objective(blocks=2, own=share))[1] for share in (0.0, 1.0))
    assert published.denoising != own.denoising
    assert published.next_token == own.next_token


def conditioned_by(model: DiffusionGemma, monkeypatch: pytest.MonkeyPatch, batch: Batch) -> Callable:
    """The loss as a function of how far the first prediction, which canvases are conditioned on, is moved."""
    away_11D = (
        jnp.arange(CONFIG.text.hidden_size)[None, None] / CONFIG.text.hidden_size
    )  # a length alone is normed away

    def moved(by: jax.Array) -> jax.Array:
        def soft_embeddings(text: TextModel, x_BTD: jax.Array) -> jax.Array:
            return head.soft_embeddings(text, x_BTD) + by * away_11D

        monkeypatch.setattr(objective_module, "soft_embeddings", soft_embeddings)
        return loss(model, batch, jax.random.key(3), Objective(blocks=2))[0]

    return moved


def test_no_gradient_flows_into_the_first_prediction(model, monkeypatch) -> None:
    moved = conditioned_by(model, monkeypatch, stack(rows(), 16, CONFIG, 1))
    value, gradient = jax.value_and_grad(moved)(0.0)
    assert abs(value - moved(1.0)) > 1e-4, "it is conditioned on"
    assert gradient == 0.0


@pytest.mark.parametrize(("counted", "depends"), [([0, 2], True), ([1, 3], False)])
def test_every_second_row_is_conditioned_on_a_first_prediction(model, monkeypatch, counted, depends) -> None:
    whole = stack(rows(), 16, CONFIG, 1)
    counts_B = np.isin(np.arange(4), counted)
    batch = whole._replace(prefix_B=whole.prefix_B * counts_B, blocks_B=whole.blocks_B * counts_B)
    moved = conditioned_by(model, monkeypatch, batch)
    assert (abs(moved(0.0) - moved(1.0)) > 1e-4) == depends


def test_rows_are_filled_to_whole_canvases_and_never_cut() -> None:
    row = Row((5, 6, 7), (8, 9, 10, 11, 12))
    batch = stack([row], 14, CONFIG, fill=1)
    assert batch.tokens_BS.tolist() == [[5, 6, 7, 8, 9, 10, 11, 12, 1, 1, 1, 0, 0, 0]]
    assert (batch.prefix_B.tolist(), batch.answer_B.tolist(), batch.blocks_B.tolist()) == ([3], [5], [2])
    assert batch.mistaken_BS is None
    with pytest.raises(ValueError, match="11 tokens, 2 canvases"):
        next(BatchStream(lambda index: row, [Bucket(10, 2, 1)], CONFIG, fill=1))


def test_mistakes_are_cut_or_filled_to_the_canvases_of_the_right_answer() -> None:
    long, short, none = (Row((5, 6), (7, 8, 9), mistake=wrong) for wrong in ((4,) * 20, (4,), None))
    batch = stack([long, short, none], 8, CONFIG, fill=1)
    assert batch.mistaken_BS is not None
    assert batch.mistaken_BS.tolist() == [
        [5, 6, 4, 4, 4, 4, 0, 0],
        [5, 6, 4, 1, 1, 1, 0, 0],
        [5, 6, 7, 8, 9, 1, 0, 0],
    ]


def test_a_row_goes_where_it_costs_least() -> None:
    """Not to the shortest batch that holds it: that one has three canvases a row."""
    row = Row((5,) * 3, (6,) * 2)
    bucket, _ = next(BatchStream(lambda index: row, [Bucket(12, 3, 1), Bucket(16, 1, 1)], CONFIG, fill=1))
    assert bucket == Bucket(16, 1, 1)


def test_a_stream_goes_on_from_the_position_it_saved() -> None:
    def row_at(index: int) -> Row:
        return Row((5,) * (1 + index * 7 % 11), (6 + index % 40,) * (1 + index % 8))

    def stream(position: Position | None = None) -> BatchStream:
        return BatchStream(row_at, [Bucket(12, 1, 2), Bucket(24, 2, 4)], CONFIG, 1, position)

    whole, first = stream(), stream()
    wanted = [next(whole) for _ in range(12)]
    for _ in range(5):
        next(first)
    second = stream(Position(**json.loads(json.dumps(first.position.as_json()))))
    for bucket, batch in wanted[5:]:
        found = next(second)
        assert found[0] == bucket
        np.testing.assert_array_equal(found[1].tokens_BS, batch.tokens_BS)


def test_a_run_is_repeatable(model) -> None:
    batch, objective = stack(rows(), 16, CONFIG, 1), Objective(blocks=2)
    first = jitted_loss(model, batch, jax.random.key(3), objective)[0]
    assert first == jitted_loss(model, batch, jax.random.key(3), objective)[0]
    assert first != jitted_loss(model, batch, jax.random.key(4), objective)[0]
