"""Where a demo run begins."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dgemma_jax.checkpoint.load import load_parameters
from dgemma_jax.prompt.tokenizer import Tokenizer
from dgemma_jax.training.demo.architecture import demo_config
from dgemma_jax.training.demo.run import DemoSettings, demo_trainer
from tools.paths import DEMO


def test_a_run_that_is_given_a_checkpoint_begins_with_its_weights() -> None:
    config = demo_config(Tokenizer.from_folder(DEMO))
    trainer = demo_trainer(config, DemoSettings(steps=10), Path(DEMO))
    _, shipped = load_parameters(Path(DEMO), config, jnp.dtype("float32"), "all_experts")
    begun = nnx.to_pure_dict(trainer.parameters())
    jax.tree.map(np.testing.assert_array_equal, begun, nnx.to_pure_dict(shipped))
    embedding = begun["text"]["embedding_VD"]
    fresh = demo_trainer(config, DemoSettings(steps=10)).parameters()
    assert not np.array_equal(embedding, nnx.to_pure_dict(fresh)["text"]["embedding_VD"])
