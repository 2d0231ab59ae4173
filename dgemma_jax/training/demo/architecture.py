"""The demo model's architecture: every part of the 26B, at a size that a laptop CPU trains and serves."""

from __future__ import annotations

from dgemma_jax.config import FULL, SLIDING, GenerationConfig, ModelConfig, ProcessorConfig, TextConfig, VisionConfig
from dgemma_jax.prompt.tokenizer import Tokenizer

VOCABULARY = 1280
DEMO_PROCESSOR = ProcessorConfig(
    patch_size=8, pooling_kernel_size=2, max_soft_tokens=16, video_max_soft_tokens=16, video_num_frames=4
)
"""Pictures of 64 patches of 8 x 8 pixels, a soft token for each 2 x 2 of them; four frames of a video."""


def demo_config(tokenizer: Tokenizer) -> ModelConfig:
    """Two full layers among six, so that far tokens are read more than once on the way up."""
    return ModelConfig(
        text=TextConfig(
            vocab_size=VOCABULARY,
            hidden_size=192,
            intermediate_size=512,
            moe_intermediate_size=48,
            num_experts=8,
            top_k_experts=2,
            num_attention_heads=6,
            num_key_value_heads=2,
            num_global_key_value_heads=1,
            head_dim=32,
            global_head_dim=64,
            layer_types=(SLIDING, SLIDING, FULL) * 2,
            sliding_window=128,
            max_position_embeddings=2048,
        ),
        vision=VisionConfig(
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=4,
            head_dim=32,
            patch_size=8,
            pooling_kernel_size=2,
            position_embedding_size=64,
            standardize=True,
        ),
        canvas_length=32,
        image_token_id=tokenizer.token_id("<|image|>"),
        boi_token_id=tokenizer.token_id("<|image>"),
        eoi_token_id=tokenizer.token_id("<image|>"),
        soft_tokens_per_image=16,
    )


def demo_generation(tokenizer: Tokenizer) -> GenerationConfig:
    """The published sampler settings but for two, and the demo tokenizer's end tokens.

    A tighter entropy bound (0.1 is published) and a little more heat at the end (0.4) cost one or two steps a canvas,
    and answers that must agree in many places (calls, JSON, lists) are right five to eleven times in a hundred more.
    """
    ends = ("<eos>", "<turn|>", "<|tool_response>")
    return GenerationConfig(
        entropy_bound=0.003,
        t_min=0.5,
        max_new_tokens=256,
        eos_token_ids=tuple(map(tokenizer.token_id, ends)),
        pad_token_id=tokenizer.token_id("<pad>"),
    )
