"""The loss of rows with pictures: what the server would see and say, and no loss for what a picture shows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_model import TEXT, VISION

from dgemma_jax import cache as kv
from dgemma_jax.config import ModelConfig
from dgemma_jax.model.diffusion_gemma import DiffusionGemma
from dgemma_jax.training import objective as objective_module
from dgemma_jax.training.objective import Batch, Objective, loss
from dgemma_jax.training.rows import Row, stack

IMAGE, SIDE, CANVAS, LENGTH = 3, 4, 4, 32
CELLS = SIDE * SIDE // VISION.patches_per_soft_token
CONFIG = ModelConfig(
    text=TEXT,
    vision=VISION,
    canvas_length=CANVAS,
    image_token_id=IMAGE,
    boi_token_id=2,
    eoi_token_id=4,
    soft_tokens_per_image=2 * CELLS,
)
PLAIN = Objective(blocks=1, prompt_weight=0.3)


@pytest.fixture(scope="module")
def model() -> DiffusionGemma:
    return DiffusionGemma(CONFIG, nnx.Rngs(0), jnp.dtype("float32"))


def row(seed: int) -> Row:
    """Two pictures with words before, between and behind them."""
    rng = np.random.default_rng(seed)
    words = [tuple(map(int, rng.integers(5, TEXT.vocab_size, 3))) for _ in range(4)]
    patches = rng.random((2, SIDE * SIDE, VISION.patch_values), np.float32)
    grid = np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE)), axis=-1).reshape(1, -1, 2)
    prompt = (*words[0], *[IMAGE] * CELLS, *words[1], *[IMAGE] * CELLS, *words[2])
    return Row(prompt, words[3], patches, np.repeat(grid, 2, axis=0).astype(np.int32))


def batch() -> Batch:
    """Two rows of which the second counts, as the first one is conditioned on a prediction."""
    whole = stack([row(0), row(1)], LENGTH, CONFIG, fill=1)
    counts_B = np.array([0, 1])
    return whole._replace(prefix_B=whole.prefix_B * counts_B, blocks_B=whole.blocks_B * counts_B)


def served_soft(model: DiffusionGemma, tokens: np.ndarray) -> jax.Array:
    """Soft tokens of the second row's pictures at their places."""
    soft_IMD = model.vision(jnp.asarray(row(1).patches_INP), jnp.asarray(row(1).position_IN2)).soft_IMD
    soft_MD = soft_IMD.reshape(-1, TEXT.hidden_size)
    return soft_MD[np.maximum(np.cumsum(tokens == IMAGE) - 1, 0)][None]


def nll(logits: jax.Array, tokens: np.ndarray) -> np.ndarray:
    return -np.asarray(jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.asarray(tokens)[:, None], axis=1))[:, 0]


def test_a_canvas_is_judged_as_the_server_would_write_it(model, monkeypatch) -> None:
    monkeypatch.setattr(objective_module, "noise_levels", lambda key, shape, t_min: jnp.zeros(shape))
    found = loss(model, batch(), jax.random.key(0), PLAIN)[1].denoising
    tokens, canvas = np.array(row(1).prompt), np.array([*row(1).answer, 1])
    cache = kv.empty(TEXT, 1, LENGTH, jnp.dtype("float32"))
    cache = model.encode(cache, jnp.asarray(tokens[None]), jnp.array([len(tokens)]), served_soft(model, tokens))
    logits = model.text.logits(model.denoise(cache, jnp.asarray(canvas[None]), None))[0]
    np.testing.assert_allclose(found, nll(logits, canvas).mean(), rtol=1e-5)


def test_every_next_word_is_learned_and_no_soft_token(model) -> None:
    found = loss(model, batch(), jax.random.key(0), PLAIN)[1].next_token
    tokens = np.array([*row(1).prompt, *row(1).answer, 1])
    place_1T = jnp.arange(len(tokens))[None]
    read = model.read(jnp.asarray(tokens[None]), place_1T, None, served_soft(model, tokens))
    losses = nll(model.text.logits(read.x_BTD)[0, :-1], tokens[1:])
    weights = np.where(np.arange(1, len(tokens)) < len(row(1).prompt), 0.3, 1.0) * (tokens[1:] != IMAGE)
    np.testing.assert_allclose(found, (losses * weights).sum() / weights.sum(), rtol=1e-5)


def test_another_picture_is_another_loss(model) -> None:
    one = batch()
    assert one.pictures is not None
    other = one._replace(pictures=one.pictures._replace(patches_BINP=1 - one.pictures.patches_BINP))
    losses = [loss(model, b, jax.random.key(0), PLAIN)[1] for b in (one, other)]
    assert losses[0].denoising != losses[1].denoising and losses[0].next_token != losses[1].next_token
