"""DiffusionGemma in JAX: `load` a checkpoint folder, then prefill, denoise, commit, or generate."""

from dgemma_jax.config import DIFFUSION_GEMMA_26B_A4B, PRESETS, GenerationConfig, ModelConfig, TextConfig, VisionConfig
from dgemma_jax.engine import Engine, Request
from dgemma_jax.generate import CanvasCommitted, Finished, stream
from dgemma_jax.pretrained import Generated, Model, load
from dgemma_jax.sampling.logprobs import TokenLogprob
from dgemma_jax.sampling.options import SamplingOptions

__all__ = [
    "DIFFUSION_GEMMA_26B_A4B",
    "PRESETS",
    "CanvasCommitted",
    "Engine",
    "Finished",
    "Generated",
    "GenerationConfig",
    "Model",
    "ModelConfig",
    "Request",
    "SamplingOptions",
    "TextConfig",
    "TokenLogprob",
    "VisionConfig",
    "load",
    "stream",
]
