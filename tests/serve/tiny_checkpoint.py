"""A checkpoint of a few thousand random weights, with the demo's tokenizer and chat template."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax.numpy as jnp
from flax import nnx

from dgemma_jax.checkpoint.export import export
from dgemma_jax.config import FULL, SLIDING, GenerationConfig, ModelConfig, TextConfig, VisionConfig
from dgemma_jax.model.diffusion_gemma import DiffusionGemma
from dgemma_jax.prompt.tokenizer import Tokenizer
from serve.config import DEMO_CHECKPOINT
from serve.engine import Canvas, Engine, Event, Job

CANVAS = 8
SOFT_TOKENS, FRAMES, FRAME_TOKENS = 4, 3, 2
"""What an image becomes, and how many frames of a video become what, where the checkpoint sees."""

_VISION = VisionConfig(
    hidden_size=8,
    intermediate_size=8,
    num_hidden_layers=1,
    num_attention_heads=1,
    num_key_value_heads=1,
    head_dim=8,
    patch_size=4,
    pooling_kernel_size=2,
    position_embedding_size=16,
)


def write_checkpoint(folder: Path, positions: int = 100, *, sees: bool = False) -> None:
    """Writes it into a folder; `positions` is how long prompt and reply may be."""
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(DEMO_CHECKPOINT / name, folder / name)
    tokenizer = Tokenizer.from_folder(folder)
    text = TextConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=16,
        intermediate_size=16,
        moe_intermediate_size=8,
        num_experts=2,
        top_k_experts=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_global_key_value_heads=1,
        head_dim=8,
        global_head_dim=8,
        layer_types=(SLIDING, FULL),
        sliding_window=16,
        max_position_embeddings=positions,
    )
    config = ModelConfig(
        text=text,
        vision=_VISION if sees else None,
        canvas_length=CANVAS,
        image_token_id=tokenizer.token_id("<|image|>"),
        boi_token_id=tokenizer.token_id("<|image>"),
        eoi_token_id=tokenizer.token_id("<image|>"),
        soft_tokens_per_image=SOFT_TOKENS,
    )
    if sees:
        video = {"num_frames": FRAMES, "max_soft_tokens": FRAME_TOKENS}
        (folder / "processor_config.json").write_text(json.dumps({"video_processor": video}), encoding="utf-8")
    generation = GenerationConfig(max_denoising_steps=2, eos_token_ids=(tokenizer.token_id("<eos>"),))
    _, params = nnx.split(DiffusionGemma(config, nnx.Rngs(0), jnp.dtype("float32")))
    export(folder, config, generation, params, jnp.dtype("float32"))


def run(engine: Engine, *jobs: Job) -> list[list[Event]]:
    """What happens to each of some jobs, done together."""
    events: dict[int, list[Event]] = {engine.submit(job): [] for job in jobs}
    while engine.busy:
        for id, event in engine.step():
            events[id].append(event)
    return list(events.values())


def tokens_of(events: list[Event]) -> list[int]:
    """The tokens of a reply."""
    return [token for event in events if isinstance(event, Canvas) for token in event.tokens]
