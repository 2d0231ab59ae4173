"""What a checkpoint says about itself, as frozen values.

`config_json.py` reads these from a checkpoint folder; everything else in the library only reads the
fields. Field names follow the published `config.json`. A setting that contradicts another fails here,
so that no later code has to doubt its config.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

LayerType = Literal["sliding_attention", "full_attention"]
SLIDING: LayerType = "sliding_attention"
FULL: LayerType = "full_attention"


class ConfigError(ValueError):
    """A configuration that cannot be read, is unknown, or contradicts itself."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def _require_positive(config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        _require(value > 0, f"{name} must be positive, found {value}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextConfig:
    """The language model. Sliding layers and full (global) layers differ in head size and key/value heads."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    moe_intermediate_size: int
    num_experts: int
    top_k_experts: int
    num_attention_heads: int
    num_key_value_heads: int
    num_global_key_value_heads: int
    head_dim: int
    global_head_dim: int
    layer_types: tuple[LayerType, ...]
    sliding_window: int
    max_position_embeddings: int
    rms_norm_eps: float = 1e-6
    final_logit_softcapping: float = 30.0
    sliding_rope_theta: float = 1e4
    full_rope_theta: float = 1e6
    full_partial_rotary_factor: float = 0.25
    bidirectional_images: bool = True

    def __post_init__(self) -> None:
        sizes = [f.name for f in dataclasses.fields(self) if f.type == "int"]
        _require_positive(self, *sizes, "rms_norm_eps", "final_logit_softcapping")
        for heads in ("num_key_value_heads", "num_global_key_value_heads"):
            _require(
                self.num_attention_heads % getattr(self, heads) == 0,
                f"num_attention_heads={self.num_attention_heads} is not a multiple of {heads}={getattr(self, heads)}",
            )
        for size in ("head_dim", "global_head_dim"):
            _require(getattr(self, size) % 2 == 0, f"{size} must be even for rotary, found {getattr(self, size)}")
        _require(
            self.top_k_experts <= self.num_experts,
            f"top_k_experts={self.top_k_experts} is more than num_experts={self.num_experts}",
        )
        unknown = set(self.layer_types) - {SLIDING, FULL}
        _require(not unknown, f"layer_types has {sorted(unknown)}; known are {SLIDING} and {FULL}")
        _require(bool(self.layer_types), "layer_types must not be empty")
        _require(self.layer_types[-1] == FULL, f"the last of layer_types must be {FULL}, found {self.layer_types[-1]}")
        _require(
            0 < self.full_partial_rotary_factor <= 1,
            f"partial_rotary_factor must be in (0, 1], found {self.full_partial_rotary_factor}",
        )

    @property
    def num_hidden_layers(self) -> int:
        return len(self.layer_types)

    def head_size(self, layer_type: LayerType) -> int:
        return self.head_dim if layer_type == SLIDING else self.global_head_dim

    def key_value_heads(self, layer_type: LayerType) -> int:
        return self.num_key_value_heads if layer_type == SLIDING else self.num_global_key_value_heads


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """The vision tower: patches in, one soft token per `pooling_kernel_size` x `pooling_kernel_size` patches out."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    patch_size: int = 16
    pooling_kernel_size: int = 3
    position_embedding_size: int = 10240
    rms_norm_eps: float = 1e-6
    rope_theta: float = 100.0
    standardize: bool = False
    use_clipped_linears: bool = False

    def __post_init__(self) -> None:
        sizes = [f.name for f in dataclasses.fields(self) if f.type == "int"]
        _require_positive(self, *sizes, "rms_norm_eps", "rope_theta")
        _require(
            self.num_attention_heads % self.num_key_value_heads == 0,
            f"vision num_attention_heads={self.num_attention_heads} is not a multiple of "
            f"num_key_value_heads={self.num_key_value_heads}",
        )
        _require(self.head_dim % 4 == 0, f"vision head_dim must be a multiple of 4 for 2-D rotary: {self.head_dim}")

    @property
    def patch_values(self) -> int:
        """Numbers in one patch: rows x columns x three colours."""
        return 3 * self.patch_size**2

    @property
    def patches_per_soft_token(self) -> int:
        return self.pooling_kernel_size**2


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The whole model. `vision` is None for a text-only checkpoint."""

    text: TextConfig
    vision: VisionConfig | None
    canvas_length: int = 256
    image_token_id: int = 258880
    boi_token_id: int = 255999
    eoi_token_id: int = 258882
    soft_tokens_per_image: int = 280

    def __post_init__(self) -> None:
        _require_positive(self, "canvas_length", "soft_tokens_per_image")
        if self.vision is not None:
            for name in ("image_token_id", "boi_token_id", "eoi_token_id"):
                value = getattr(self, name)
                _require(
                    0 <= value < self.text.vocab_size,
                    f"{name}={value} is outside the vocabulary of {self.text.vocab_size}",
                )


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """The sampler's settings (`generation_config.json`). Entropies are in nats; temperatures divide the logits."""

    max_new_tokens: int = 256
    max_denoising_steps: int = 48
    entropy_bound: float = 0.1
    t_min: float = 0.4
    t_max: float = 0.8
    stability_threshold: int = 1
    confidence_threshold: float = 0.005
    eos_token_ids: tuple[int, ...] = (1, 106, 50)
    pad_token_id: int = 0

    def __post_init__(self) -> None:
        _require_positive(self, "max_new_tokens", "max_denoising_steps", "entropy_bound", "confidence_threshold")
        _require(
            0 <= self.t_min < self.t_max, f"t_min must be in [0, t_max), found t_min={self.t_min}, t_max={self.t_max}"
        )
        _require(self.stability_threshold >= 0, f"stability_threshold must not be negative: {self.stability_threshold}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProcessorConfig:
    """How images and video frames become patches (`processor_config.json`): sizes in pixels, budgets in soft tokens."""

    patch_size: int = 16
    pooling_kernel_size: int = 3
    max_soft_tokens: int = 280
    do_resize: bool = True
    rescale_factor: float = 1 / 255
    resample: Literal[3] = 3  # bicubic, by Pillow's number
    video_max_soft_tokens: int = 70
    video_num_frames: int = 32

    def __post_init__(self) -> None:
        sizes = [f.name for f in dataclasses.fields(self) if f.type == "int"]
        _require_positive(self, *sizes, "rescale_factor")


def _gemma_layers(count: int) -> tuple[LayerType, ...]:
    return tuple(FULL if (index + 1) % 6 == 0 else SLIDING for index in range(count))


DIFFUSION_GEMMA_26B_A4B = ModelConfig(
    text=TextConfig(
        vocab_size=262144,
        hidden_size=2816,
        intermediate_size=2112,
        moe_intermediate_size=704,
        num_experts=128,
        top_k_experts=8,
        num_attention_heads=16,
        num_key_value_heads=8,
        num_global_key_value_heads=2,
        head_dim=256,
        global_head_dim=512,
        layer_types=_gemma_layers(30),
        sliding_window=1024,
        max_position_embeddings=262144,
    ),
    vision=VisionConfig(
        hidden_size=1152,
        intermediate_size=4304,
        num_hidden_layers=27,
        num_attention_heads=16,
        num_key_value_heads=16,
        head_dim=72,
        standardize=True,
    ),
)
"""The published `google/diffusiongemma-26B-A4B-it`."""

MINI = ModelConfig(
    text=dataclasses.replace(
        DIFFUSION_GEMMA_26B_A4B.text,
        hidden_size=704,
        intermediate_size=528,
        moe_intermediate_size=176,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_global_key_value_heads=1,
        layer_types=_gemma_layers(6),
    ),
    vision=None,
)
"""A quarter of the width and a fifth of the layers, the whole vocabulary: 0.49 B parameters, to measure on a CPU."""

PRESETS: dict[str, ModelConfig] = {"26b-a4b": DIFFUSION_GEMMA_26B_A4B, "mini": MINI}
