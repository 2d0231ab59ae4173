"""transformers' DiffusionGemma as the reference: random weights, its own `generate` path, its randomness recorded.

    Spec -> random_model -> Prefix (prefill, logits, commit)  as `generate` does them, step by step
                         -> sample                            `generate` itself, every draw and every step recorded

Needs torch and transformers; only `tools/golden.py` and the tests marked `reference` import this.
"""

# mypy: ignore-errors
# (torch and transformers are not there where types are checked, and their own types do not fit together.)
from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from transformers import DiffusionGemmaConfig, DiffusionGemmaForBlockDiffusion, DynamicCache

Arrays = dict[str, np.ndarray]
EDGE = 1e-3
"""A decision nearer to its edge than this would test rounding, not the sampler: such draws are drawn again."""


class UndecidedError(Exception):
    """Rounding alone could have changed what was recorded."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spec:
    """A tiny model: its shapes, and how lively it is.

    branch: scale of what a layer adds to the residual stream; small makes a model that repeats its canvas.
    sharpness: scale of the logits.
    """

    name: str
    text: dict[str, Any]
    vision: dict[str, Any]
    canvas_length: int
    seed: int
    text_only: bool = False
    branch: float = 1.0
    sharpness: float = 4.0

    @property
    def image_token(self) -> int:
        return self.text["vocab_size"] - 3


def random_model(spec: Spec) -> DiffusionGemmaForBlockDiffusion:
    """The model of a spec in float32; the same numbers every time."""
    config = DiffusionGemmaConfig(
        text_config=spec.text,
        vision_config=spec.vision,
        canvas_length=spec.canvas_length,
        image_token_id=spec.image_token,
        boi_token_id=spec.image_token + 1,
        eoi_token_id=spec.image_token + 2,
    )
    model = DiffusionGemmaForBlockDiffusion(config).eval()
    model.set_experts_implementation("eager")  # the plain loop over experts; the default needs 32 bits
    rng = np.random.default_rng(spec.seed)
    seen: set[int] = set()
    for name, tensor in sorted(model.state_dict().items()):
        if tensor.data_ptr() not in seen:  # tied weights have several names
            seen.add(tensor.data_ptr())
            tensor.copy_(torch.from_numpy(_values(name, tuple(tensor.shape), rng, spec)))
    return model


def _values(name: str, shape: tuple[int, ...], rng: np.random.Generator, spec: Spec) -> np.ndarray:
    """Lively numbers: no two scales alike, outputs of matrices about as large as their inputs."""
    leaf = name.rsplit(".", 1)[-1]
    if leaf in ("input_min", "output_min", "input_max", "output_max"):
        return np.full(shape, rng.uniform(0.8, 2.0) * (-1 if leaf.endswith("min") else 1), np.float32)
    if leaf == "position_embedding_table":
        return rng.normal(0, 0.5, shape).astype(np.float32)
    if leaf == "std_bias" or len(shape) > 1:
        return rng.normal(0, shape[-1] ** -0.5, shape).astype(np.float32)
    factor = 1.0
    if (
        ".layers." in name
        and "vision" not in name
        and ("post_attention" in name or "post_feedforward_layernorm." in name)
    ):
        factor = spec.branch
    if name.endswith(("decoder.norm.weight", "language_model.norm.weight")):
        factor = spec.sharpness
    return (factor * rng.uniform(0.5, 1.5, shape)).astype(np.float32)


class Prefix:
    """What has been encoded so far, built with `generate`'s own calls: only those mask images in both directions."""

    def __init__(self, model: DiffusionGemmaForBlockDiffusion, inputs: Arrays):
        self.model = model
        self.cache = DynamicCache(config=model.config.get_text_config(decoder=True))
        self.length = 0
        self._encode(torch.from_numpy(inputs["tokens"]).long(), **image_inputs(model, inputs))

    def commit(self, canvas: np.ndarray) -> None:
        """Appends a canvas."""
        self._encode(torch.from_numpy(canvas).long())

    def logits(self, canvas: np.ndarray, previous: torch.Tensor | None) -> torch.Tensor:
        """One denoising pass, conditioned as `generate` conditions the next step."""
        tokens = torch.from_numpy(canvas).long()
        rows, length = tokens.shape
        weights = self.model.model.decoder.embed_tokens.weight
        mask = self.model.model.decoder.create_diffusion_decoder_attention_mask(
            config=self.model.config,
            inputs_embeds=tokens[..., None],
            past_key_values=self.cache,
            decoder_attention_mask=torch.ones((rows, self.length + length), dtype=torch.bool),
        )
        return self.model(
            decoder_input_ids=tokens,
            self_conditioning_logits=None if previous is None else previous.to(weights.dtype),
            decoder_attention_mask=mask,
            past_key_values=self.cache,
            decoder_position_ids=self._positions(length),
        ).logits

    def key_values(self) -> Arrays:
        """Keys and values of each layer, [B, S, K, C]; sliding layers hold the last `window - 1` positions."""
        arrays = {}
        for index, layer in enumerate(self.cache.layers):
            arrays[f"key_{index}"] = layer.keys.transpose(1, 2).float().numpy()
            arrays[f"value_{index}"] = layer.values.transpose(1, 2).float().numpy()
        return arrays

    def _positions(self, length: int) -> torch.Tensor:
        return torch.arange(self.length, self.length + length, dtype=torch.int32)[None]

    def _encode(self, tokens: torch.Tensor, **images: torch.Tensor) -> None:
        rows, length = tokens.shape
        positions = self._positions(length)
        tokens, masks = self.model._prepare_encoder_inputs(
            input_ids=tokens,
            attention_mask=torch.ones((rows, self.length + length), dtype=torch.bool),
            encoder_position_ids=positions,
            past_key_values=self.cache,
            is_prefill=True,
            canvas_length=length,
            batch_size=rows,
            **images,
        )
        self.model.model.encoder(
            input_ids=tokens, attention_mask=masks, past_key_values=self.cache, position_ids=positions, **images
        )
        self.length += length


def image_inputs(model: DiffusionGemmaForBlockDiffusion, inputs: Arrays) -> dict[str, torch.Tensor]:
    """The arguments that carry images, by the names that `generate` knows; empty without images."""
    if "patches" not in inputs:
        return {}
    weights = model.model.encoder.embed_vision.embedding_projection.weight
    types = (inputs["tokens"] == model.config.image_token_id).astype(np.int64)
    return {
        "pixel_values": torch.from_numpy(inputs["patches"]).to(weights.dtype),
        "image_position_ids": torch.from_numpy(inputs["patch_positions"]).long(),
        "mm_token_type_ids": torch.from_numpy(types),
    }


@torch.no_grad()
def logits_case(model: DiffusionGemmaForBlockDiffusion, inputs: Arrays, previous: np.ndarray | None = None) -> Arrays:
    """First step, second step, keys and values, and the first step after a commit, for one prompt.

    The second step is conditioned on `previous`, or on the first step where that is None.
    """
    prefix = Prefix(model, inputs)
    first = prefix.logits(inputs["canvas"], None)
    conditioned = prefix.logits(inputs["next_canvas"], first if previous is None else torch.from_numpy(previous))
    outputs = {"first": first, "conditioned": conditioned}
    key_values = {f"prefilled/{name}": value for name, value in prefix.key_values().items()}
    prefix.commit(inputs["canvas"])
    outputs["committed"] = prefix.logits(inputs["next_canvas"], None)
    key_values |= {f"committed/{name}": value for name, value in prefix.key_values().items()}
    if "patches" in inputs:
        images = image_inputs(model, inputs)
        features = model.model.encoder.get_image_features(images["pixel_values"], images["image_position_ids"])
        outputs["soft_tokens"] = features.pooler_output
    return {name: value.float().numpy() for name, value in outputs.items()} | key_values


class RecordedRandomness:
    """Takes the place of torch's random functions and remembers, canvas by canvas, what it gave."""

    def __init__(self, seed: int):
        self.rng = np.random.default_rng(seed)
        self.canvases: list[dict[str, list[np.ndarray]]] = []
        self.probabilities: list[np.ndarray] = []

    def randint(self, low: int, high: int, size: tuple[int, ...], device: object = None) -> torch.Tensor:
        """Random tokens; those that no step follows are a canvas's start."""
        tokens = self.rng.integers(low, high, size)
        current = self.canvases[-1]
        current["token" if current["start"] else "start"].append(tokens)
        return torch.from_numpy(tokens)

    def multinomial(self, probs: torch.Tensor, num_samples: int) -> torch.Tensor:
        """Inverse transform sampling, as `dgemma_jax.sampling.head.draw` does it."""
        assert num_samples == 1
        self.probabilities.append(probs.numpy().copy())
        cumulative = np.cumsum(probs.numpy(), axis=-1, dtype=np.float32)
        uniform = np.array([self._clear_of_edges(row / row[-1]) for row in cumulative], np.float32)
        self.canvases[-1]["uniform"].append(uniform)
        drawn = (cumulative <= (uniform * cumulative[:, -1])[:, None]).sum(axis=-1)
        return torch.from_numpy(np.minimum(drawn, probs.shape[-1] - 1))[:, None]

    def _clear_of_edges(self, cumulative: np.ndarray) -> np.float32:
        while True:
            uniform = self.rng.random(dtype=np.float32)
            if np.abs(cumulative - uniform).min() > EDGE:
                return uniform


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """Settings of one recorded `generate` call."""

    name: str
    seed: int
    prompt: int
    max_new_tokens: int
    max_denoising_steps: int
    entropy_bound: float
    t_min: float = 0.4
    t_max: float = 0.8
    stability_threshold: int = 1
    confidence_threshold: float = 0.005
    eos_token_id: tuple[int, ...] = ()

    def arguments(self) -> dict[str, Any]:
        """As `generate` takes them."""
        from transformers.models.diffusion_gemma.generation_diffusion_gemma import EntropyBoundSamplerConfig

        own = {"name", "seed", "prompt", "entropy_bound"}
        values = {name: value for name, value in dataclasses.asdict(self).items() if name not in own}
        eos = {"eos_token_id": list(self.eos_token_id) or None}
        sampler = EntropyBoundSamplerConfig(entropy_bound=self.entropy_bound)
        return {**values, **eos, "sampler_config": sampler, "pad_token_id": 0}


def sample(
    model: DiffusionGemmaForBlockDiffusion, inputs: Arrays, settings: Sampling, double: DiffusionGemmaForBlockDiffusion
) -> Arrays:
    """Runs `generate` on recorded draws: every canvas after every step.

    Raises UndecidedError where a decision is near its edge, or where the same run in float64 (`double`) does not have
    very nearly the same probabilities: a lively model fed with its own sharpened predictions can be chaotic.
    """
    arrays, probabilities = _run(model, inputs, settings)
    exact_arrays, exact = _run(double, inputs, settings)
    if any(not np.array_equal(exact_arrays.get(name), value) for name, value in arrays.items()):
        raise UndecidedError("float64 takes another course")
    if any(np.abs(one - other).max() > EDGE / 10 for one, other in zip(probabilities, exact, strict=True)):
        raise UndecidedError("float64 has other probabilities")
    return arrays


def _run(model: DiffusionGemmaForBlockDiffusion, inputs: Arrays, settings: Sampling) -> tuple[Arrays, list[np.ndarray]]:
    """The recording, and the probabilities of every step."""
    recorded = RecordedRandomness(settings.seed)
    with _recording(model, recorded, settings):
        output = model.generate(
            torch.from_numpy(inputs["tokens"]).long(), **image_inputs(model, inputs), **settings.arguments()
        )
    arrays: Arrays = {"sequences": output.sequences.numpy().astype(np.int16)}
    for index, canvas in enumerate(recorded.canvases):
        shape = canvas["start"][0].shape
        uniform = np.stack(canvas["uniform"]).reshape(-1, *shape)
        arrays[f"{index}/uniform"] = uniform.astype(np.float32)
        arrays[f"{index}/start"] = canvas["start"][0].astype(np.int16)
        arrays |= {f"{index}/{key}": np.stack(canvas[key]).astype(np.int16) for key in ("token", "canvas", "argmax")}
        arrays[f"{index}/steps"] = np.stack(canvas["active"]).sum(axis=0).astype(np.int16)
    return arrays, recorded.probabilities


@contextlib.contextmanager
def _recording(
    model: DiffusionGemmaForBlockDiffusion, recorded: RecordedRandomness, settings: Sampling
) -> Iterator[None]:
    prepare, denoise = model._prepare_denoiser_inputs, model._denoising_step

    def new_canvas(*args: Any, **kwargs: Any) -> tuple:
        keys = ("start", "token", "uniform", "canvas", "argmax", "active")
        recorded.canvases.append({key: [] for key in keys})
        return prepare(*args, **kwargs)

    def step(**kwargs: Any) -> tuple:
        active = ~kwargs["finished_denoising"].numpy()
        canvas, argmax, logits, finished = denoise(**kwargs)
        here = recorded.canvases[-1]
        for key, value in (("canvas", canvas.numpy()), ("argmax", argmax.numpy()), ("active", active)):
            here[key].append(value.copy())
        if margin(logits.double().numpy()[active], settings) < EDGE:
            raise UndecidedError("a decision is near its edge")
        return canvas, argmax, logits, finished

    with (
        mock.patch.object(torch, "randint", recorded.randint),
        mock.patch.object(torch, "multinomial", recorded.multinomial),
        mock.patch.object(model, "_prepare_denoiser_inputs", new_canvas),
        mock.patch.object(model, "_denoising_step", step),
    ):
        yield


def margin(logits: np.ndarray, settings: Sampling) -> float:
    """How far the nearest decision of a step is from falling the other way: likeliest token, acceptance, stopping."""
    best = np.sort(logits, axis=-1)
    logp = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    entropy = np.sort(-(np.exp(logp) * logp).sum(axis=-1), axis=-1)
    before = np.cumsum(entropy, axis=-1) - entropy
    last = (before <= settings.entropy_bound).sum(axis=-1, keepdims=True) - 1
    following = np.minimum(last + 1, entropy.shape[-1] - 1)
    order = np.take_along_axis(entropy, following, -1) - np.take_along_axis(entropy, last, -1)
    return min(
        float((best[..., -1] - best[..., -2]).min()),
        float(np.abs(before[:, 1:] - settings.entropy_bound).min()),
        float(np.where(following == last, np.inf, order).min()),
        float(np.abs(entropy.mean(axis=-1) - settings.confidence_threshold).min()),
    )


def save(model: DiffusionGemmaForBlockDiffusion, spec: Spec, folder: Path) -> None:
    """The checkpoint as transformers writes it; without its vision tower for a text-only spec."""
    model.save_pretrained(folder)
    if spec.text_only:
        drop_vision(folder)


def drop_vision(folder: Path) -> None:
    """transformers always has a tower; a checkpoint for text only says `vision_config: null`."""
    import json

    from safetensors.torch import load_file, save_file

    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vision_config": None}, indent=2, sort_keys=True) + "\n")
    vision = ("model.encoder.vision_tower.", "model.encoder.embed_vision.")
    tensors = {
        name: value for name, value in load_file(folder / "model.safetensors").items() if not name.startswith(vision)
    }
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
