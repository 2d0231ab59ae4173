"""A loaded model: parameters on a device or on many, and the public functions over them."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jax.typing import ArrayLike

from dgemma_jax import cache as kv
from dgemma_jax import compiled
from dgemma_jax.buckets import ImageGroup, capacity_bucket, chunks, image_groups, prefill_bucket, prefill_chunk
from dgemma_jax.checkpoint.load import load_parameters, stored_kind, stores_fp8
from dgemma_jax.checkpoint.quantize import KINDS, Kind
from dgemma_jax.checkpoint.quantized_shards import quantize_parameters
from dgemma_jax.config import ConfigError, GenerationConfig, ModelConfig, ProcessorConfig
from dgemma_jax.config_json import read_generation_config, read_model_config
from dgemma_jax.generate import Generated, generate
from dgemma_jax.inputs import Images, check_images, check_tokens
from dgemma_jax.media.patches import Patches, stacked
from dgemma_jax.model import gpu
from dgemma_jax.model.moe import BACKENDS, choose_backend, runs_as
from dgemma_jax.processor_json import read_processor_config
from dgemma_jax.prompt.tokenizer import Tokenizer
from dgemma_jax.sampling.heads import HEADS, choose_head
from dgemma_jax.sampling.options import PLAIN, SamplingOptions
from dgemma_jax.sharding import cache_sharding, fetch, make_mesh
from dgemma_jax.training.lora import merge as merge_adapter
from dgemma_jax.training.lora import read as read_adapter

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Model:
    """A checkpoint on its devices. Made by `load`; every method but `append` leaves its arguments as they are."""

    config: ModelConfig
    generation: GenerationConfig
    processor: ProcessorConfig | None
    tokenizer: Tokenizer | None
    dtype: jnp.dtype
    graphdef: nnx.GraphDef
    params: nnx.State
    mesh: Mesh | None = None
    """The devices it is spread over; None for one."""

    @functools.cached_property
    def flat(self) -> tuple[compiled.Structure, list[jax.Array]]:
        """The model as the programs take it."""
        return compiled.flat(self.graphdef, self.params)

    def prefill(
        self, tokens: ArrayLike, *, patches: Images = None, patch_positions: ArrayLike | None = None
    ) -> kv.Cache:
        """Reads prompts, causally, into a new cache.

        Args:
            tokens: int [batch, length], at least one token; all rows of the same length.
            patches: float [images, patches, 3 * patch_size ** 2] in [0, 1], for prompts that hold image tokens;
                one soft token per `pooling_kernel_size ** 2` patches, which fill the image tokens in order. Or the
                images one by one, as `media.image.to_patches` makes them, with their places.
            patch_positions: int [images, patches, 2] as (x, y), beside an array of patches; (-1, -1) marks padding.

        Raises:
            ValueError: wrong ranks, unknown token ids, a prompt longer than the model's positions, patches
                outside [0, 1] or not on a full grid, or image tokens that are not, image by image, as many as the
                soft tokens of the patches.
        """
        tokens_BT = check_tokens("tokens", tokens, self.config.text.vocab_size)
        rows, length = tokens_BT.shape
        self._check_room(length)
        images = check_images(self.config, tokens_BT, patches, patch_positions)
        is_soft_BT = tokens_BT == self.config.image_token_id
        soft_BTD = None if images is None else self.soft_tokens(is_soft_BT, images)
        cache = self.empty_cache(rows, self.capacity(length + self.config.canvas_length))
        for start, end in chunks(length, self.chunk, None if images is None else is_soft_BT):
            cache = self.extend(cache, tokens_BT[:, start:end], None if soft_BTD is None else soft_BTD[:, start:end])
        return cache

    def commit(self, cache: kv.Cache, canvas: ArrayLike) -> kv.Cache:
        """Appends a canvas, int [batch, length], to a cache: read causally, like a prompt.

        Raises:
            ValueError: wrong shape, unknown token ids, or more tokens than the model has positions.
        """
        tokens_BT = self._check_canvas(cache, canvas)
        needed = int(jnp.max(cache.length_B)) + tokens_BT.shape[1]
        self._check_room(needed)
        return self.extend(self._with_room(jax.tree.map(jnp.copy, cache), needed), tokens_BT, None)

    def denoise_logits(self, cache: kv.Cache, canvas: ArrayLike, previous_logits: ArrayLike | None = None) -> jax.Array:
        """One denoising pass over canvases that follow the cached tokens.

        Args:
            cache: what the canvas may read; it is not changed.
            canvas: int [batch, canvas].
            previous_logits: float [batch, canvas, vocabulary]: the prediction to condition on, after temperature
                scaling, as the sampler feeds it back. None for a first step.

        Returns:
            float32 [batch, canvas, vocabulary], soft-capped, not scaled by any temperature.

        Raises:
            ValueError: shapes that do not agree, or unknown token ids.
        """
        canvas_BL = jnp.asarray(self._check_canvas(cache, canvas), jnp.int32)
        previous = None if previous_logits is None else jnp.asarray(previous_logits, jnp.float32)
        wanted = (*canvas_BL.shape, self.config.text.vocab_size)
        if previous is not None and previous.shape != wanted:
            raise ValueError(f"previous_logits must have shape {wanted}, found {previous.shape}")
        return compiled.denoise_logits(*self.flat, cache, canvas_BL, previous)

    def generate(
        self,
        tokens: ArrayLike,
        max_new_tokens: int = 256,
        seed: int | ArrayLike = 0,
        max_denoising_steps: int | None = None,
        options: SamplingOptions = PLAIN,
        **images: Any,
    ) -> Generated:
        """Answers prompts, int [batch, length]. The same row and seed get the same draws in any batch.

        Args:
            tokens: as for `prefill`.
            max_new_tokens: cut there exactly.
            seed: one for all rows, or one a row; 64 bits.
            max_denoising_steps: per canvas; None as the checkpoint's generation_config.json says.
            options: top-k, top-p, log-probabilities; for all rows.
            images: `patches` and `patch_positions`, as for `prefill`.

        Raises:
            ValueError: as `prefill`; or a number that is not positive.
        """
        steps = self.generation.max_denoising_steps if max_denoising_steps is None else max_denoising_steps
        settings = dataclasses.replace(self.generation, max_new_tokens=max_new_tokens, max_denoising_steps=steps)
        return generate(self, tokens, seed, settings, options, **images)

    def append(self, cache: kv.Cache, canvas_BL: jax.Array, needed: int, ended_B: jax.Array) -> kv.Cache:
        """As `commit`, without a look at anything that is still being computed.

        The given cache is used up, its memory becomes the result's. `needed`: tokens that are then in the fullest row.
        Where all rows have ended, nothing is read.
        """
        return compiled.commit(*self.flat, self._with_room(cache, needed), canvas_BL, ended_B)

    def _with_room(self, cache: kv.Cache, needed: int) -> kv.Cache:
        if needed <= cache.capacity:
            return cache
        return compiled.grow(cache, self.capacity(needed), self.config.text.sliding_window)

    def extend(
        self,
        cache: kv.Cache,
        tokens_BT: np.ndarray,
        soft_BTD: np.ndarray | None,
        counts: np.ndarray | None = None,
    ) -> kv.Cache:
        """One pass of `prefill`: reads tokens that fit into a cache, which is used up.

        counts: how many of its tokens each row reads; None: all.
        """
        rows, length = tokens_BT.shape
        padding = ((0, 0), (0, prefill_bucket(length, self.config.canvas_length) - length))
        tokens = jnp.asarray(np.pad(tokens_BT, padding), jnp.int32)
        count_B = jnp.full(rows, length, jnp.int32) if counts is None else jnp.asarray(counts, jnp.int32)
        soft = None if soft_BTD is None else jnp.asarray(np.pad(soft_BTD, (*padding, (0, 0))))
        return compiled.encode(*self.flat, cache, tokens, count_B, soft)

    @property
    def chunk(self) -> int:
        """Tokens of one pass over a prompt at most."""
        return prefill_chunk(self.config.canvas_length, jax.default_backend())

    def soft_tokens(self, is_soft_BT: np.ndarray, images: Sequence[Patches]) -> np.ndarray:
        """Soft tokens of all images, each where its image token is: [B, T, D]; other places mean nothing.

        On the host: on a device, putting them in place would be compiled anew for every length of a prompt.
        """
        soft_MD = np.concatenate([self.see(images, group) for group in self.image_groups(images)])
        return soft_MD[np.maximum(np.cumsum(is_soft_BT).reshape(is_soft_BT.shape) - 1, 0)]

    def image_groups(self, images: Sequence[Patches]) -> list[ImageGroup]:
        """The images of a prompt as they go through the vision tower: a program is compiled for each padded size."""
        return image_groups((len(image.patches_NP) for image in images), self._cell)

    def see(self, images: Sequence[Patches], group: ImageGroup) -> np.ndarray:
        """Soft tokens [M, D] of a group of the images, in order: once through the vision tower."""
        # The last image again and again fills the group; its further soft tokens come last and are cut off.
        places = [min(index, group.end - 1) for index in range(group.start, group.start + group.images)]
        patches_INP, positions_IN2 = stacked([images[place] for place in places], group.patches)
        soft_ZD = fetch(compiled.soft_tokens(*self.flat, jnp.asarray(patches_INP), jnp.asarray(positions_IN2)))
        return soft_ZD[: sum(len(image.patches_NP) for image in images[group.start : group.end]) // self._cell]

    @property
    def _cell(self) -> int:
        """Patches of a soft token."""
        assert self.config.vision is not None, "there are no patches without a vision tower"
        return self.config.vision.patches_per_soft_token

    def _check_canvas(self, cache: kv.Cache, canvas: ArrayLike) -> np.ndarray:
        tokens_BL = check_tokens("canvas", canvas, self.config.text.vocab_size)
        if len(tokens_BL) != len(cache.length_B):
            raise ValueError(f"canvas has {len(tokens_BL)} rows, the cache has {len(cache.length_B)}")
        return tokens_BL

    def _check_room(self, needed: int) -> None:
        positions = self.config.text.max_position_embeddings
        if needed > positions:
            raise ValueError(f"{needed} tokens do not fit the model's {positions} positions")

    def empty_cache(self, rows: int, capacity: int) -> kv.Cache:
        """A cache that holds nothing, where the model's devices want it."""
        return compiled.empty(self.config.text, rows, capacity, self.dtype, self.mesh)

    def place(self, cache: kv.Cache) -> kv.Cache:
        """A cache, moved to where the model's devices want it: no copy if it is there."""
        return cache if self.mesh is None else jax.device_put(cache, cache_sharding(cache, self.mesh))

    def capacity(self, needed: int) -> int:
        """The capacity of a cache for so many tokens: one of few."""
        return capacity_bucket(needed, self.config.text.max_position_embeddings)


def load(
    path: str | Path,
    dtype: str = "bfloat16",
    mesh: str | Mesh | None = None,
    quantize: Kind | None = None,
    backend: str | None = None,
    lora: str | Path | None = None,
    head: str | None = None,
) -> Model:
    """Loads a checkpoint folder: the Hugging Face layout, or the same with an Orbax tree for weights.

    Args:
        path: folder with config.json and weights, safetensors (full ones, or FP8 of compressed-tensors) or `orbax/`;
            generation_config.json and a tokenizer where there are.
        dtype: "bfloat16", or "float32" for exactness. Weights are converted when the files hold the other.
        mesh: devices to spread the model over: "expert=4,data=2" or a jax Mesh with axes of `data`, `expert` and
            `model` (see `dgemma_jax.sharding`); None for all accelerators present, of CPU devices for one.
        quantize: "int8" (a scale an output channel) or "int4" (a scale for every 64 inputs) for the matrices of
            experts, attention and MLP; None keeps them as they are stored. See `checkpoint/quantize.py`.
        backend: how the experts run, one of `model.moe.BACKENDS`; None chooses by device and size.
        head: how the sampler passes over the vocabulary, one of `sampling.heads.HEADS`; None chooses by its size.
        lora: folder of an adapter (`dgemma_jax.training.lora`), which is added to the weights.

    Raises:
        ConfigError: config missing, unknown or contradictory setting.
        CheckpointError: files missing, damaged, or tensors or an adapter that do not fit the model.
        TokenizerError: tokenizer damaged, or lacking a token of the chat format.
        ValueError: an argument that is not supported, a mesh that does not fit, or a tokenizer with more tokens than
            the model.
    """
    folder = Path(path)
    config = read_model_config(folder)
    quantize = _kind(folder, quantize, lora)
    _check_choices(dtype, quantize, backend, head)
    kind = jnp.dtype(dtype)
    processor = None if config.vision is None else read_processor_config(folder, config)
    generation, tokenizer = read_generation_config(folder), _read_tokenizer(folder, config)
    _check_special_ids(folder, generation, config)
    adapter = None if lora is None else read_adapter(Path(lora), config)
    pass_ = head or choose_head(config.text)
    devices = make_mesh(mesh, config.text)
    # An adapter is added to full weights.
    early = quantize if adapter is None else None
    fp8 = quantize is None and adapter is None and devices is None and stores_fp8(folder, config)
    if fp8 and backend == "ragged_dot":
        raise ValueError("the backend ragged_dot needs full weights, and these are FP8: choose another one")
    quantized = fp8 or quantize is not None
    chosen = backend or choose_backend(
        config.text, jax.default_backend(), quantized=quantized, kernels=gpu.runs_kernels()
    )
    graphdef, params = load_parameters(folder, config, kind, chosen, pass_, early, devices, keep_fp8=fp8)
    if adapter is not None:
        params = merge_adapter(params, adapter)
        params = params if quantize is None else quantize_parameters(params, quantize, devices)
    matrices = "fp8" if fp8 else quantize or dtype
    runs = runs_as(chosen, quantized=quantized)
    logger.info("experts run as %s, the vocabulary as %s, matrices in %s", runs, pass_, matrices)
    return Model(config, generation, processor, tokenizer, kind, graphdef, params, devices)


def _check_choices(dtype: str, quantize: str | None, backend: str | None, head: str | None) -> None:
    if quantize is not None and quantize not in KINDS:
        raise ValueError(f"quantize must be None or one of {', '.join(KINDS)}, found {quantize!r}")
    if quantize is not None and backend == "ragged_dot":
        raise ValueError("the backend ragged_dot needs full weights: choose another one, or no quantize")
    if dtype not in ("bfloat16", "float32"):
        raise ValueError(f'dtype must be "bfloat16" or "float32", found {dtype!r}')
    if backend is not None and backend not in BACKENDS:
        raise ValueError(f"backend must be None or one of {', '.join(sorted(BACKENDS))}, found {backend!r}")
    if head is not None and head not in HEADS:
        raise ValueError(f"head must be None or one of {', '.join(sorted(HEADS))}, found {head!r}")


def _kind(folder: Path, wanted: Kind | None, lora: str | Path | None) -> Kind | None:
    """How the matrices are quantised: as they are stored, or as it is wanted. Raises ValueError where that differs."""
    held = stored_kind(folder)
    if held is None:
        return wanted
    if wanted not in (None, held):
        raise ValueError(f"{folder} holds matrices in {held}, which is the only quantize for it; found {wanted!r}")
    if lora is not None:
        raise ValueError(f"{folder} holds matrices in {held}, and an adapter is added to full ones")
    return held


def _check_special_ids(folder: Path, generation: GenerationConfig, config: ModelConfig) -> None:
    outside = [i for i in (*generation.eos_token_ids, generation.pad_token_id) if not 0 <= i < config.text.vocab_size]
    if outside:
        raise ConfigError(
            f"{folder}: end or pad tokens {outside} are outside the vocabulary of {config.text.vocab_size}; "
            "name this model's in generation_config.json as eos_token_id and pad_token_id"
        )


def _read_tokenizer(folder: Path, config: ModelConfig) -> Tokenizer | None:
    if not any((folder / name).exists() for name in ("tokenizer.json", "tokenizer.model")):
        return None
    tokenizer = Tokenizer.from_folder(folder)
    tokenizer.require()
    if tokenizer.vocab_size > config.text.vocab_size:
        raise ValueError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} tokens, the model only {config.text.vocab_size}"
        )
    return tokenizer
