"""A model with every part and random weights, as small as can be: what is fine-tuned in the tests."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax.numpy as jnp
from flax import nnx

from dgemma_jax.checkpoint.export import export
from dgemma_jax.config import FULL, SLIDING, LayerType, ModelConfig, TextConfig, VisionConfig
from dgemma_jax.model.diffusion_gemma import DiffusionGemma
from dgemma_jax.processor_json import write_processor_config
from dgemma_jax.prompt.tokenizer import Tokenizer
from dgemma_jax.training.demo.architecture import DEMO_PROCESSOR, demo_generation
from dgemma_jax.training.run_folder import copy_companions

DEMO = Path(__file__).parents[2] / "checkpoints" / "demo"
TEXT = TextConfig(
    vocab_size=50,
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
    max_position_embeddings=256,
)
VISION = VisionConfig(
    hidden_size=16,
    intermediate_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=2,
    head_dim=8,
    patch_size=8,
    pooling_kernel_size=2,
    position_embedding_size=64,
    standardize=True,
)


def tiny_config(tokenizer: Tokenizer) -> ModelConfig:
    return ModelConfig(
        text=dataclasses.replace(TEXT, vocab_size=tokenizer.vocab_size),
        vision=VISION,
        canvas_length=8,
        image_token_id=tokenizer.token_id("<|image|>"),
        boi_token_id=tokenizer.token_id("<|image>"),
        eoi_token_id=tokenizer.token_id("<image|>"),
        soft_tokens_per_image=16,
    )


def write_tiny(folder: Path, config: ModelConfig) -> None:
    """A checkpoint that can chat: tokenizer and chat template are the demo's."""
    params = nnx.state(DiffusionGemma(config, nnx.Rngs(0), jnp.dtype("float32")))
    export(folder, config, demo_generation(Tokenizer.from_folder(DEMO)), params, jnp.dtype("bfloat16"))
    copy_companions(DEMO, folder)
    if config.vision is not None:
        write_processor_config(folder, DEMO_PROCESSOR)


def one_layer(config: ModelConfig) -> ModelConfig:
    """Less to compile, for what needs gradients."""
    layers: tuple[LayerType, ...] = (FULL,)
    return dataclasses.replace(config, text=dataclasses.replace(config.text, layer_types=layers), vision=None)
