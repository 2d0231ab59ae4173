"""transformers on the weights of a model of ours, for `bench step --against transformers`.

Needs torch and transformers (`make test-reference` installs them).
"""

# mypy: ignore-errors
# (torch and transformers are not there where types are checked, and their own types do not fit together.)
from __future__ import annotations

import time
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from dgemma_jax.checkpoint.export import published_tensors
from dgemma_jax.config import ModelConfig

try:
    import torch
    from transformers import DiffusionGemmaConfig, DiffusionGemmaForBlockDiffusion

    from tools.oracle import Prefix
except ImportError as error:
    raise ValueError(f"--against transformers needs torch and transformers: {error}") from error

_NO_VISION: dict[str, Any] = {
    # transformers always has a tower: the smallest one.
    "model_type": "gemma4_vision",
    **dict[str, Any](num_hidden_layers=1, hidden_size=8, intermediate_size=8, num_attention_heads=1, head_dim=8),
    **dict[str, Any](num_key_value_heads=1, patch_size=4, pooling_kernel_size=3, position_embedding_size=24),
}


_TOKENS = ("image_token_id", "boi_token_id", "eoi_token_id")


class Peer:
    """One prompt, read; then steps of its first canvas, each from the same state."""

    @torch.no_grad()
    def __init__(self, config: ModelConfig, params: nnx.State, tokens: np.ndarray):
        self.model = _model(config, params)
        self.prefix = Prefix(self.model, {"tokens": tokens})
        self._arguments = self._second_step(tokens)
        self.experts = self._quickest(("grouped_mm", "eager"))

    @torch.no_grad()
    def logits(self, canvas: np.ndarray, previous: np.ndarray | None) -> np.ndarray:
        """Soft-capped logits of a canvas behind the prompt."""
        before = None if previous is None else torch.from_numpy(previous)
        return self.prefix.logits(canvas, before).float().numpy()

    @torch.no_grad()
    def step(self) -> None:
        """One of `generate`'s own denoising steps, conditioned on the one before it."""
        self.model._denoising_step(**self._arguments)

    def _quickest(self, implementations: tuple[str, ...]) -> str:
        """Of transformers' ways to run experts that bound their memory the one that is quicker here; it stays set."""
        seconds = {}
        for name in implementations:
            self.model.set_experts_implementation(name)
            start = time.perf_counter()
            self.step()
            seconds[name] = time.perf_counter() - start
        best = min(seconds, key=seconds.get)
        self.model.set_experts_implementation(best)
        return best

    def _second_step(self, tokens: np.ndarray) -> dict[str, Any]:
        """What `generate` gives to its second step."""
        calls: list[dict[str, Any]] = []
        own = self.model._denoising_step

        def remember(**arguments: Any) -> tuple:
            calls.append(arguments)
            if len(calls) == 2:
                raise _EnoughError
            return own(**arguments)

        self.model._denoising_step = remember
        try:
            # A threshold that nothing meets, so that no canvas stops.
            self.model.generate(
                torch.from_numpy(tokens).long(), max_new_tokens=1, max_denoising_steps=48, confidence_threshold=1e-30
            )
        except _EnoughError:
            pass
        finally:
            del self.model._denoising_step
        return calls[1]


class _EnoughError(Exception):
    """The arguments are known; the rest of the answer is not wanted."""


def _model(config: ModelConfig, params: nnx.State) -> DiffusionGemmaForBlockDiffusion:
    if config.vision is not None:
        raise ValueError("--against transformers measures models without a vision tower, such as the preset mini")
    text = config.text
    names = ("vocab_size", "hidden_size", "intermediate_size", "moe_intermediate_size", "num_experts", "top_k_experts")
    names += ("num_attention_heads", "num_key_value_heads", "num_global_key_value_heads", "head_dim", "global_head_dim")
    names += ("sliding_window", "max_position_embeddings", "rms_norm_eps", "final_logit_softcapping")
    settings = {name: getattr(text, name) for name in names}
    settings |= {"layer_types": list(text.layer_types), "num_hidden_layers": text.num_hidden_layers}
    settings |= {"hidden_activation": "gelu_pytorch_tanh", "use_bidirectional_attention": "vision"}
    places = {name: getattr(config, name) for name in ("canvas_length", *_TOKENS)}
    model = DiffusionGemmaForBlockDiffusion(
        DiffusionGemmaConfig(text_config=settings, vision_config=_NO_VISION, **places)
    )
    state = model.state_dict()
    for name, value in published_tensors(config, params, jnp.dtype("float32")):
        state[name].copy_(torch.from_numpy(np.array(value)))
    return model.eval()
