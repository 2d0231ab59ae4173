"""The vision tower's first lessons, before it is trained with the rest: to see what stands in each cell of a picture.

An answer of a few words teaches a tower little. Here every soft token of a drawn picture is a question: the one where a
shape's middle lies must point to the words of its colour and of its kind, all others to nothing, and each to the
background. The words are the language model's own embeddings, so that it reads a soft token as it reads words.
On two cores the demo's tower names 99 % of the colours and 97 % of the kinds of what it sees after four minutes; after
700,000 rows of questions alone a linear probe found 82 % and 75 %.
"""

from __future__ import annotations

from random import Random
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tqdm import tqdm

from dgemma_jax.media.image import to_patches
from dgemma_jax.model.diffusion_gemma import DiffusionGemma
from dgemma_jax.model.norms import rms_norm
from dgemma_jax.prompt.tokenizer import Tokenizer
from dgemma_jax.training.demo.architecture import DEMO_PROCESSOR
from dgemma_jax.training.demo.scenes import COLOURS, KINDS, Scene, draw_scene

BATCH = 96
LEARNING_RATE = 2e-3
SHAPE_WEIGHT = 4.0
"""Of a cell that holds a shape: most hold none."""
BACKGROUND_WEIGHT = 0.3


class Lesson(NamedTuple):
    """Pictures and what each cell M holds: numbers in COLOURS and KINDS, one more for nothing (or grey), -1: no cell.

    patches_INP: float32 in [0, 1]. position_IN2: int32 (x, y), -1 for padding.
    """

    patches_INP: jax.Array | np.ndarray
    position_IN2: jax.Array | np.ndarray
    colour_IM: jax.Array | np.ndarray
    kind_IM: jax.Array | np.ndarray
    background_IM: jax.Array | np.ndarray


class Words(nnx.Module):
    """What soft tokens are compared with: the words' directions, which stay; nothing, and the backgrounds."""

    def __init__(self, model: DiffusionGemma, tokenizer: Tokenizer, rngs: nnx.Rngs):
        self.colour_DC, self.kind_DC = (nnx.Variable(_directions(model, tokenizer, w)) for w in (COLOURS, KINDS))
        width = model.config.text.hidden_size
        self.no_colour_D1, self.no_kind_D1 = (nnx.Param(0.02 * rngs.normal((width, 1))) for _ in range(2))
        self.background_DC = nnx.Param(0.02 * rngs.normal((width, len(COLOURS) + 1)))
        self.sharpness = nnx.Param(jnp.asarray([np.e, np.e]))

    def __call__(self, soft_IMD: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Scores of colours and nothing, kinds and nothing, and backgrounds."""
        soft_IMD = rms_norm(soft_IMD.astype(jnp.float32), None, 1e-6)
        colour_DC = jnp.concatenate([self.colour_DC[...] * self.sharpness[...][0], self.no_colour_D1[...]], axis=1)
        kind_DC = jnp.concatenate([self.kind_DC[...] * self.sharpness[...][1], self.no_kind_D1[...]], axis=1)
        return soft_IMD @ colour_DC, soft_IMD @ kind_DC, soft_IMD @ self.background_DC[...]


def _directions(model: DiffusionGemma, tokenizer: Tokenizer, words: tuple[str, ...]) -> jax.Array:
    tokens = jnp.asarray([tokenizer.encode(f" {word}")[0] for word in words])
    word_CD = model.text.embedding_VD[...][tokens].astype(jnp.float32)
    return (word_CD / jnp.linalg.norm(word_CD, axis=1, keepdims=True)).T


def learn_to_see(model: DiffusionGemma, tokenizer: Tokenizer, steps: int, seed: int) -> None:
    """Trains the model's vision tower in place on `steps` batches; the rest stays."""
    words = Words(model, tokenizer, nnx.Rngs(seed))
    graphdef, learned, fixed = nnx.split((model.vision, words), _is_learned, ...)  # type: ignore[misc]
    schedule = optax.warmup_cosine_decay_schedule(0.0, LEARNING_RATE, min(50, steps // 2), steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.98, weight_decay=0.01))
    state = optimizer.init(learned)

    @jax.jit
    def step(learned: Any, state: Any, lesson: Lesson) -> tuple[Any, Any, jax.Array]:
        def loss(learned: Any) -> jax.Array:
            tower, words = nnx.merge(graphdef, learned, fixed)
            return lesson_loss(words(tower(lesson.patches_INP, lesson.position_IN2).soft_IMD), lesson)

        value, gradients = jax.value_and_grad(loss)(learned)
        updates, state = optimizer.update(gradients, state, learned)
        return optax.apply_updates(learned, updates), state, value

    with tqdm(range(steps), desc="seeing", unit="step") as bar:
        for number in bar:
            learned, state, value = step(learned, state, draw_lesson(seed, number))
            if number % 20 == 0:
                bar.set_postfix(loss=round(float(value), 3))
    tower, _ = nnx.merge(graphdef, learned, fixed)
    nnx.update(model.vision, nnx.state(tower))


def _is_learned(path: tuple, variable: object) -> bool:
    return isinstance(variable, nnx.Param) and not str(path[-1]).startswith("standard_")


def lesson_loss(scores: tuple[jax.Array, jax.Array, jax.Array], lesson: Lesson) -> jax.Array:
    """Cross-entropy of what each cell holds, in nats: colour, kind, and a little of the background."""
    colour, kind, background = scores
    return (
        _cross_entropy(colour, lesson.colour_IM, len(COLOURS))
        + _cross_entropy(kind, lesson.kind_IM, len(KINDS))
        + BACKGROUND_WEIGHT * _cross_entropy(background, lesson.background_IM, -1)
    )


def _cross_entropy(score_IMC: jax.Array, label_IM: jax.Array | np.ndarray, nothing: int) -> jax.Array:
    nats_IM = optax.softmax_cross_entropy_with_integer_labels(score_IMC, jnp.maximum(label_IM, 0))
    weight_IM = jnp.where(label_IM < 0, 0.0, jnp.where(label_IM == nothing, 1.0, SHAPE_WEIGHT))
    return jnp.sum(nats_IM * weight_IM) / jnp.sum(weight_IM)


def draw_lesson(seed: int, number: int) -> Lesson:
    """Batch `number` of the endless lessons of a seed."""
    rng = Random(f"sight {seed} {number}")
    pages = [page(_scene(rng)) for _ in range(BATCH)]
    return Lesson(*(np.stack(column) for column in zip(*pages, strict=True)))


def _scene(rng: Random) -> Scene:
    count = rng.choice((1, 2, 3, 4, 4))
    return draw_scene(rng, [(rng.choice(COLOURS), rng.choice(KINDS)) for _ in range(count)])


def page(scene: Scene) -> Lesson:
    """One picture's lesson, padded to the cells of the largest."""
    patches = to_patches(scene.render(), DEMO_PROCESSOR)
    kernel, most = DEMO_PROCESSOR.pooling_kernel_size, DEMO_PROCESSOR.max_soft_tokens
    missing = ((0, most * kernel**2 - len(patches.patches_NP)), (0, 0))
    columns, rows = (patches.position_N2.max(axis=0) + 1) // kernel
    colour_M, kind_M, background_M = (np.full(most, -1, np.int32) for _ in range(3))
    real = slice(columns * rows)
    colour_M[real], kind_M[real] = len(COLOURS), len(KINDS)
    background_M[real] = _colour(scene.background.colour.name)
    for shape in scene.shapes:
        x, y = (
            int(at / side * cells)
            for at, side, cells in zip((shape.x, shape.y), scene.size, (columns, rows), strict=True)
        )
        colour_M[y * columns + x], kind_M[y * columns + x] = _colour(shape.colour.name), KINDS.index(shape.kind)
    return Lesson(
        np.pad(patches.patches_NP, missing),
        np.pad(patches.position_N2, missing, constant_values=-1),
        colour_M,
        kind_M,
        background_M,
    )


def _colour(name: str) -> int:
    """Its number; grey, which only backgrounds have, comes last."""
    return COLOURS.index(name) if name in COLOURS else len(COLOURS)
