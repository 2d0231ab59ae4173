"""A loaded model: parameters on a device, and the public functions over them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike

from dgemma_jax import cache as kv
from dgemma_jax import compiled
from dgemma_jax.buckets import PREFILL_CHUNK, capacity_bucket, chunks, prefill_bucket
from dgemma_jax.checkpoint.load import load_parameters
from dgemma_jax.config import GenerationConfig, ModelConfig
from dgemma_jax.config_json import read_generation_config, read_model_config
from dgemma_jax.model.moe import choose_backend
from dgemma_jax.prompt.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Generated:
    """What `generate` returns.

    tokens: int32 [batch, n], n at most `max_new_tokens`. A row that ends early holds its end token, then padding.
    steps: int32 [batch, canvases], denoising steps of each canvas; 0 for canvases after a row's end.
    """

    tokens: np.ndarray
    steps: np.ndarray


@dataclasses.dataclass(frozen=True)
class Model:
    """A checkpoint on a device. Made by `load`; every method leaves its arguments as they are."""

    config: ModelConfig
    generation: GenerationConfig
    tokenizer: Tokenizer | None
    dtype: jnp.dtype
    graphdef: nnx.GraphDef
    params: nnx.State

    def prefill(
        self, tokens: ArrayLike, *, patches: ArrayLike | None = None, patch_positions: ArrayLike | None = None
    ) -> kv.Cache:
        """Reads prompts, causally, into a new cache.

        Args:
            tokens: int [batch, length], at least one token; all rows of the same length.
            patches: float [images, patches, 3 * patch_size ** 2] in [0, 1], for prompts that hold image tokens;
                one soft token per `pooling_kernel_size ** 2` patches, which fill the image tokens in order.
            patch_positions: int [images, patches, 2] as (x, y); (-1, -1) marks padding.

        Raises:
            ValueError: wrong ranks, unknown token ids, a prompt longer than the model's positions, patches
                without positions, or a number of image tokens that differs from the soft tokens of the patches.
        """
        tokens_BT = self._check_tokens("tokens", tokens)
        rows, length = tokens_BT.shape
        self._check_room(0, length)
        soft_BTD = self._soft_tokens(tokens_BT, patches, patch_positions)
        capacity = self._capacity(length + self.config.canvas_length)
        cache = kv.empty(self.config.text, rows, capacity, self.dtype)
        soft = None if soft_BTD is None else tokens_BT == self.config.image_token_id
        for start, end in chunks(length, PREFILL_CHUNK, soft):
            part = None if soft_BTD is None else soft_BTD[:, start:end]
            cache = self._encode(cache, tokens_BT[:, start:end], part)
        return cache

    def commit(self, cache: kv.Cache, canvas: ArrayLike) -> kv.Cache:
        """Appends a canvas, int [batch, length], to a cache: read causally, like a prompt.

        Raises:
            ValueError: wrong shape, unknown token ids, or more tokens than the model has positions.
        """
        tokens_BT = self._check_tokens("canvas", canvas)
        if len(tokens_BT) != len(cache.length_B):
            raise ValueError(f"canvas has {len(tokens_BT)} rows, the cache has {len(cache.length_B)}")
        # The one number the host needs: how full the fullest row is.
        filled = int(jnp.max(cache.length_B))
        self._check_room(filled, tokens_BT.shape[1])
        needed = filled + tokens_BT.shape[1]
        if needed > cache.capacity:
            cache = compiled.grow(cache, self._capacity(needed), self.config.text.sliding_window)
        return self._encode(cache, tokens_BT, None)

    def denoise_logits(self, cache: kv.Cache, canvas: ArrayLike, previous_logits: ArrayLike | None = None) -> jax.Array:
        """One denoising pass over canvases that follow the cached tokens.

        Args:
            cache: what the canvas may read; it is not changed.
            canvas: int [batch, canvas].
            previous_logits: float [batch, canvas, vocabulary]: the prediction to condition on, after temperature
                scaling, as the sampler feeds it back. None for a first step.

        Returns:
            float32 [batch, canvas, vocabulary], soft-capped, not scaled by any temperature.
        """
        canvas_BL = compiled.as_tokens(self._check_tokens("canvas", canvas))
        previous = None if previous_logits is None else jnp.asarray(previous_logits, jnp.float32)
        wanted = (*canvas_BL.shape, self.config.text.vocab_size)
        if previous is not None and previous.shape != wanted:
            raise ValueError(f"previous_logits must have shape {wanted}, found {previous.shape}")
        return compiled.denoise_logits(self.graphdef, self.params, cache, canvas_BL, previous)

    def generate(
        self,
        tokens: ArrayLike,
        max_new_tokens: int = 256,
        seed: int | ArrayLike = 0,
        max_denoising_steps: int | None = None,
        **images: ArrayLike,
    ) -> Generated:
        """Answers prompts, int [batch, length]. The same row and seed give the same tokens in any batch.

        Args:
            tokens: as for `prefill`.
            max_new_tokens: cut there exactly.
            seed: one for all rows, or one a row.
            max_denoising_steps: per canvas; None as the checkpoint's generation_config.json says.
            images: `patches` and `patch_positions`, as for `prefill`.

        Raises:
            ValueError: as `prefill`; or a number that is not positive.
        """
        from dgemma_jax.generate import generate  # generate.py reads this module's Model

        steps = self.generation.max_denoising_steps if max_denoising_steps is None else max_denoising_steps
        settings = dataclasses.replace(self.generation, max_new_tokens=max_new_tokens, max_denoising_steps=steps)
        return generate(self, tokens, seed, settings, **images)

    def _encode(self, cache: kv.Cache, tokens_BT: np.ndarray, soft_BTD: jax.Array | None) -> kv.Cache:
        rows, length = tokens_BT.shape
        padding = ((0, 0), (0, prefill_bucket(length, self.config.canvas_length) - length))
        tokens = compiled.as_tokens(np.pad(tokens_BT, padding))
        soft = None if soft_BTD is None else jnp.pad(soft_BTD, (*padding, (0, 0)))
        return compiled.encode(self.graphdef, self.params, cache, tokens, jnp.full(rows, length, jnp.int32), soft)

    def _soft_tokens(
        self, tokens_BT: np.ndarray, patches: ArrayLike | None, positions: ArrayLike | None
    ) -> jax.Array | None:
        wanted = int(np.sum(tokens_BT == self.config.image_token_id)) if self.config.vision else 0
        if patches is None and positions is None:
            if wanted:
                raise ValueError(f"tokens hold {wanted} image tokens, but no patches were given")
            return None
        patches_INP, positions_IN2 = self._check_patches(patches, positions)
        found = count_soft_tokens(positions_IN2, self.config.vision.pooling_kernel_size)  # type: ignore[union-attr]
        if found != wanted:
            raise ValueError(f"tokens hold {wanted} image tokens, but the patches make {found} soft tokens")
        return compiled.soft_tokens(
            self.graphdef,
            self.params,
            compiled.as_tokens(tokens_BT),
            jnp.asarray(patches_INP),
            jnp.asarray(positions_IN2),
        )

    def _check_patches(self, patches: ArrayLike | None, positions: ArrayLike | None) -> tuple[np.ndarray, np.ndarray]:
        vision = self.config.vision
        if vision is None:
            raise ValueError("this checkpoint has no vision tower: it reads no images")
        if patches is None or positions is None:
            raise ValueError("patches and patch_positions must be given together")
        patches_INP, positions_IN2 = np.asarray(patches, np.float32), np.asarray(positions, np.int32)
        wanted = ("images", "patches", vision.patch_values)
        if patches_INP.ndim != 3 or patches_INP.shape[2] != vision.patch_values:
            raise ValueError(f"patches must have shape {wanted}, found {patches_INP.shape}")
        if positions_IN2.shape != (*patches_INP.shape[:2], 2):
            raise ValueError(
                f"patch_positions must have shape {(*patches_INP.shape[:2], 2)}, found {positions_IN2.shape}"
            )
        if patches_INP.shape[1] % vision.patches_per_soft_token:
            raise ValueError(
                f"patches per image must be a multiple of {vision.patches_per_soft_token}: pad with (-1, -1)"
            )
        if positions_IN2.min(initial=-1) < -1 or positions_IN2.max(initial=-1) >= vision.position_embedding_size:
            raise ValueError(f"patch_positions must be in [-1, {vision.position_embedding_size})")
        return patches_INP, positions_IN2

    def _check_tokens(self, name: str, tokens: ArrayLike) -> np.ndarray:
        tokens_BT = np.asarray(tokens)
        if tokens_BT.ndim != 2 or not tokens_BT.size or not np.issubdtype(tokens_BT.dtype, np.integer):
            raise ValueError(
                f"{name} must be integers of shape [batch, length], found {tokens_BT.dtype} {tokens_BT.shape}"
            )
        vocabulary = self.config.text.vocab_size
        if tokens_BT.min() < 0 or tokens_BT.max() >= vocabulary:
            raise ValueError(f"{name} must be in [0, {vocabulary}), found {tokens_BT.min()} to {tokens_BT.max()}")
        return tokens_BT

    def _check_room(self, filled: int, new: int) -> None:
        positions = self.config.text.max_position_embeddings
        if filled + new > positions:
            raise ValueError(f"{filled + new} tokens do not fit the model's {positions} positions")

    def _capacity(self, needed: int) -> int:
        return capacity_bucket(needed, self.config.text.max_position_embeddings)


def load(
    path: str | Path, dtype: str = "bfloat16", mesh: None = None, quantize: None = None, backend: str | None = None
) -> Model:
    """Loads a checkpoint folder in the Hugging Face layout.

    Args:
        path: folder with config.json and safetensors files; generation_config.json and a tokenizer where there are.
        dtype: "bfloat16", or "float32" for exactness. Weights are converted when the files hold the other.
        mesh, quantize: not implemented yet; must be None.
        backend: how the experts run, one of `model.moe.BACKENDS`; None chooses by device and size.

    Raises:
        ConfigError: config missing, unknown or contradictory setting.
        CheckpointError: files missing, damaged, or tensors that do not fit the model.
        TokenizerError: tokenizer damaged or lacking a token of the chat format.
        ValueError: an argument that is not supported.
    """
    if mesh is not None or quantize is not None:
        raise ValueError("mesh and quantize are not implemented yet: pass None")
    if dtype not in ("bfloat16", "float32"):
        raise ValueError(f'dtype must be "bfloat16" or "float32", found {dtype!r}')
    folder = Path(path)
    config, kind = read_model_config(folder), jnp.dtype(dtype)
    generation, tokenizer = read_generation_config(folder), _read_tokenizer(folder, config)
    chosen = backend or choose_backend(config.text, jax.default_backend())
    graphdef, params = load_parameters(folder, config, kind, chosen)
    return Model(config, generation, tokenizer, kind, graphdef, params)


def _read_tokenizer(folder: Path, config: ModelConfig) -> Tokenizer | None:
    if not any((folder / name).exists() for name in ("tokenizer.json", "tokenizer.model")):
        return None
    tokenizer = Tokenizer.from_folder(folder)
    if tokenizer.vocab_size > config.text.vocab_size:
        raise ValueError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} tokens, the model only {config.text.vocab_size}"
        )
    return tokenizer


def count_soft_tokens(positions_IN2: np.ndarray, kernel: int) -> int:
    """Soft tokens that patches at these positions make: one per occupied kernel x kernel cell of each image."""
    return sum(
        len({(x // kernel, y // kernel) for x, y in image if (x, y) != (-1, -1)}) for image in positions_IN2.tolist()
    )
