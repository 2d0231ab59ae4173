"""Learning: every optimiser does it, in one batch or in parts, on one device or more, and frozen parts stay."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from tiny_model import TEXT, one_layer

from dgemma_jax import sharding
from dgemma_jax.config import ModelConfig
from dgemma_jax.model.diffusion_gemma import DiffusionGemma
from dgemma_jax.training import objective as objective_module
from dgemma_jax.training.objective import Batch, Metrics, Objective, loss
from dgemma_jax.training.optimizer import OptimizerConfig, learning_rate, make_optimizer
from dgemma_jax.training.rows import Row, stack
from dgemma_jax.training.trainer import Trainer

CONFIG = one_layer(ModelConfig(text=TEXT, vision=None, canvas_length=4))
KEY = jax.random.key(0)
PLAIN, REMAT = Objective(blocks=2), Objective(blocks=2, remat=True)
Gradient = Callable[..., tuple[nnx.State, Metrics]]


def parts() -> tuple[nnx.GraphDef, nnx.State]:
    return nnx.split(DiffusionGemma(CONFIG, nnx.Rngs(0), jnp.dtype("float32")))


def batch() -> Batch:
    return fresh_batch(2)


def fresh_batch(seed: int) -> Batch:
    rng = np.random.default_rng(seed)
    rows = [Row(tuple(rng.integers(5, 50, 7)), tuple(rng.integers(5, 50, 4))) for _ in range(4)]
    return stack(rows, 16, CONFIG, 1)


@pytest.fixture(scope="module")
def gradient() -> Gradient:
    """Compiled once for all tests."""
    graphdef, _ = parts()

    @functools.partial(jax.jit, static_argnums=3)
    def compute(params: nnx.State, batch: Batch, key: jax.Array, objective: Objective) -> tuple[nnx.State, Metrics]:
        def scalar(params: nnx.State) -> tuple[jax.Array, Metrics]:
            return loss(nnx.merge(graphdef, params), batch, key, objective)

        return jax.grad(scalar, has_aux=True)(params)

    return compute


def optimizer(config: OptimizerConfig, params: nnx.State) -> tuple[Callable, Any]:
    """The compiled update, and the state that it starts from."""
    rule = make_optimizer(config)

    @jax.jit
    def update(gradients: nnx.State, state: Any, params: nnx.State) -> tuple[nnx.State, Any]:
        changes, state = rule.update(gradients, state, params)
        return optax.apply_updates(params, changes), state

    return update, jax.jit(rule.init)(params)


def updates(gradient: Gradient, config: OptimizerConfig, count: int) -> tuple[nnx.State, list[Metrics]]:
    """Plain training: what `Trainer` must agree with."""
    params, seen = parts()[1], []
    update, state = optimizer(config, params)
    for step in range(count):
        gradients, metrics = gradient(params, batch(), jax.random.fold_in(KEY, step), PLAIN)
        params, state = update(gradients, state, params)
        seen.append(metrics)
    return params, seen


def close(left: Any, right: Any, atol: float) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), left, right)


@pytest.mark.parametrize(("name", "rate"), [("adamw", 1e-2), ("adafactor", 1e-2), ("muon", 2e-2)])
def test_every_optimiser_learns_the_batch_by_heart(gradient, name, rate) -> None:
    _, seen = updates(gradient, OptimizerConfig(steps=80, name=name, learning_rate=rate, warmup=5), 80)
    assert seen[-1].next_token < 0.4 * seen[0].next_token
    assert seen[-1].denoising < 0.8 * seen[0].denoising


def test_canvases_without_noise_are_learned_until_nothing_is_lost(monkeypatch) -> None:
    """What stands in the canvas is the answer, to each position its own: no shift and no mask leaves a loss."""
    monkeypatch.setattr(objective_module, "noise_levels", lambda key, shape, t_min: jnp.zeros(shape))
    graphdef, params = parts()
    config = OptimizerConfig(steps=60, name="muon", learning_rate=2e-2, warmup=5)
    trainer = Trainer(graphdef, params, nnx.State({}), config, seed=0)
    objective = Objective(blocks=2, next_token_weight=0.0)
    losses = [trainer.step(fresh_batch(step), objective).denoising for step in range(60)]
    assert float(losses[0]) > 0.5 and float(losses[-1]) < 0.01


def test_half_batches_accumulate_to_the_whole(gradient) -> None:
    """A loss is a mean over what counts, so halves that count the same have the whole's gradient as their mean."""
    whole, params = batch(), parts()[1]

    def only(rows: list[int]) -> Batch:
        keep_B = np.isin(np.arange(4), rows)
        return whole._replace(prefix_B=whole.prefix_B * keep_B, blocks_B=whole.blocks_B * keep_B)

    config = OptimizerConfig(steps=2, learning_rate=1e-3, warmup=0)
    update, state = optimizer(dataclasses.replace(config, accumulate=2), params)
    found, state = update(gradient(params, only([0, 1]), KEY, PLAIN)[0], state, params)
    close(found, params, atol=0)
    found, _ = update(gradient(params, only([2, 3]), KEY, PLAIN)[0], state, params)
    update, state = optimizer(config, params)
    wanted, _ = update(gradient(params, whole, KEY, PLAIN)[0], state, params)
    close(found, wanted, atol=2e-5)  # Adam's first step is the gradient's sign where that is above its epsilon


def test_remat_changes_memory_not_numbers(gradient) -> None:
    params = parts()[1]
    close(gradient(params, batch(), KEY, PLAIN), gradient(params, batch(), KEY, REMAT), atol=1e-5)


@pytest.mark.parametrize("wanted", ["expert=2", "model=2", "data=2", "data=2,expert=2,model=2"])
def test_the_trainer_is_the_plain_loop_spread_over_devices(gradient, wanted: str) -> None:
    config = OptimizerConfig(steps=4, learning_rate=1e-3, warmup=0, average=0.9)
    expected, seen = updates(gradient, config, 3)
    mesh = sharding.make_mesh(wanted, CONFIG.text)
    graphdef, params = nnx.split(sharding.spread(DiffusionGemma(CONFIG, nnx.Rngs(0), jnp.dtype("float32")), mesh))
    trainer = Trainer(graphdef, params, nnx.State({}), config, seed=0, mesh=mesh)
    losses = [float(trainer.step(batch(), PLAIN).loss) for _ in range(3)]
    np.testing.assert_allclose(losses, [float(metrics.loss) for metrics in seen], rtol=1e-5)
    close(trainer.state.trained, expected, atol=1e-4)
    for _, leaf in [*nnx.to_flat_state(trainer.state.trained), *nnx.to_flat_state(trainer.state.average)]:
        assert leaf[...].sharding.is_equivalent_to(sharding.parameter_sharding(leaf, mesh), leaf.ndim)


def test_the_rate_rises_and_falls_as_the_schedule_says() -> None:
    cosine = learning_rate(OptimizerConfig(steps=100, learning_rate=1.0, warmup=10))
    straight = OptimizerConfig(steps=100, learning_rate=1.0, warmup=10, schedule="hold", cooldown=0.2)
    hold, fall = learning_rate(straight), learning_rate(dataclasses.replace(straight, cooldown=1.0, final=0.0))
    assert [round(float(cosine(step)), 2) for step in (0, 10, 55, 100)] == [0.0, 1.0, 0.55, 0.1]
    assert [round(float(hold(step)), 2) for step in (0, 10, 80, 90, 100)] == [0.0, 1.0, 1.0, 0.55, 0.1]
    assert [round(float(fall(step)), 2) for step in (0, 10, 55, 100)] == [0.0, 1.0, 0.5, 0.0]


@pytest.mark.parametrize("name", ["adamw", "adafactor", "muon"])
def test_matrices_decay_at_the_rate_and_vectors_do_not(name) -> None:
    config = OptimizerConfig(steps=100, name=name, learning_rate=0.1, warmup=10, weight_decay=0.01, schedule="hold")
    params = parts()[1]
    update, state = optimizer(config, params)
    still = jax.tree.map(jnp.zeros_like, params)
    found = params
    for _ in range(3):  # at rates 0, 0.01 and 0.02
        found, state = update(still, state, found)
    for (path, before), (_, after) in zip(nnx.to_flat_state(params), nnx.to_flat_state(found), strict=True):
        embeds = bool({"vocabulary", "position"} & set(before.get_metadata("axes")))
        decays = before.ndim >= 2 and not (name == "muon" and embeds)
        kept = (1 - 0.01 * 0.01) * (1 - 0.02 * 0.01) if decays else 1.0
        np.testing.assert_allclose(after[...], before[...] * kept, rtol=2e-6, err_msg=str(path))
