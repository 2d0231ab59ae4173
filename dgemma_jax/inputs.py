"""Checking what callers hand to the model. Every refusal is a ValueError that says what was wanted and found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeGuard

import numpy as np
from jax.typing import ArrayLike

from dgemma_jax.config import ModelConfig, VisionConfig
from dgemma_jax.media.patches import Patches, split

Images = ArrayLike | Sequence[Patches] | None
"""Images that callers hand in: one array of patches, padded, beside one of their places; or each by itself."""


def check_tokens(name: str, tokens: ArrayLike, vocab_size: int) -> np.ndarray:
    """Token ids, int [batch, length], at least one."""
    tokens_BT = np.asarray(tokens)
    if tokens_BT.ndim != 2 or not tokens_BT.size or not np.issubdtype(tokens_BT.dtype, np.integer):
        raise ValueError(f"{name} must be integers of shape [batch, length], found {tokens_BT.dtype} {tokens_BT.shape}")
    if tokens_BT.min() < 0 or tokens_BT.max() >= vocab_size:
        raise ValueError(f"{name} must be in [0, {vocab_size}), found {tokens_BT.min()} to {tokens_BT.max()}")
    return tokens_BT


def check_seeds(seed: ArrayLike, rows: int) -> np.ndarray:
    """Seeds as uint32 [rows, 2], low and high half. A negative seed counts from the end of the 64-bit numbers."""
    seeds = np.asarray(seed, object)
    if seeds.shape not in ((), (rows,)) or not all(isinstance(s, int | np.integer) for s in seeds.ravel()):
        raise ValueError(f"seed must be one integer or one for each of the {rows} rows, found {seed!r}")
    values = [int(s) for s in np.broadcast_to(seeds, (rows,))]
    if not all(-(2**63) <= s < 2**64 for s in values):
        raise ValueError(f"seed must fit 64 bits, found {seed!r}")
    bits = np.asarray([s % 2**64 for s in values], np.uint64)
    return np.stack([bits & np.uint64(2**32 - 1), bits >> np.uint64(32)], axis=1).astype(np.uint32)


def check_images(
    config: ModelConfig, tokens_BT: np.ndarray, patches: Images, positions: ArrayLike | None
) -> tuple[Patches, ...] | None:
    """Images that fit the model and, one by one, the image tokens of the prompts; None without."""
    if patches is None and positions is None:
        found = int(np.sum(tokens_BT == config.image_token_id)) if config.vision else 0
        if found:
            raise ValueError(f"tokens hold {found} image tokens, but no patches were given")
        return None
    if config.vision is None:
        raise ValueError("this checkpoint has no vision tower: it reads no images")
    images = tuple(_images(config.vision, patches, positions))
    made = [_soft_tokens(index, image, config.vision) for index, image in enumerate(images)]
    held = [run for row in tokens_BT == config.image_token_id for run in _runs(row)]
    if held != made:
        raise ValueError(f"tokens hold images of {held} soft tokens, but the patches make images of {made}")
    return images or None


def _images(vision: VisionConfig, patches: Images, positions: ArrayLike | None) -> Sequence[Patches]:
    if _is_separate(patches):
        if positions is not None:
            raise ValueError("patch_positions belong to an array of patches: `Patches` have their own")
        return patches
    if patches is None or positions is None:
        raise ValueError("patches and patch_positions must be given together")
    patches_INP, positions_IN2 = np.asarray(patches, np.float32), np.asarray(positions)
    if patches_INP.ndim != 3 or patches_INP.shape[2] != vision.patch_values:
        raise ValueError(
            f"patches must have shape [images, patches, {vision.patch_values}], found {list(patches_INP.shape)}"
        )
    if positions_IN2.shape != (*patches_INP.shape[:2], 2):
        wanted = [*patches_INP.shape[:2], 2]
        raise ValueError(f"patch_positions must have shape {wanted}, found {list(positions_IN2.shape)}")
    if patches_INP.shape[1] % vision.patches_per_soft_token:
        raise ValueError(f"patches per image must be a multiple of {vision.patches_per_soft_token}: pad with (-1, -1)")
    return split(patches_INP, positions_IN2, vision.patches_per_soft_token)


def _is_separate(patches: Images) -> TypeGuard[Sequence[Patches]]:
    return isinstance(patches, Sequence) and all(isinstance(image, Patches) for image in patches)


def _soft_tokens(index: int, image: Patches, vision: VisionConfig) -> int:
    """Soft tokens of one image, whose patches must cover whole pooling cells of a full grid."""
    patches_NP, position_N2 = image.patches_NP, image.position_N2
    shapes, wanted = [patches_NP.shape, position_N2.shape], [(len(position_N2), n) for n in (vision.patch_values, 2)]
    if shapes != wanted:
        raise ValueError(f"patches and positions of image {index} must have shapes {wanted}, found {shapes}")
    low, high = image.extremes
    if not (low >= 0 and high <= 1):
        raise ValueError(f"patches must be in [0, 1], found {low} to {high}")
    if position_N2.min(initial=-1) < -1 or position_N2.max(initial=-1) >= vision.position_embedding_size:
        raise ValueError(f"patch_positions must be in [-1, {vision.position_embedding_size})")
    kernel, place_N2 = vision.pooling_kernel_size, position_N2.astype(np.int64)
    columns, rows = (int(most) + 1 for most in place_N2.max(axis=0, initial=-1))
    if columns % kernel or rows % kernel or not _is_grid(place_N2, columns, rows):
        raise ValueError(
            f"patch_positions of image {index} must cover a grid whose sides are multiples of "
            f"{kernel}, each place once; found {len(place_N2)} patches within {columns} x {rows}"
        )
    return len(place_N2) // vision.patches_per_soft_token


def _is_grid(place_N2: np.ndarray, columns: int, rows: int) -> bool:
    """Whether every place of a grid is there, once."""
    if not len(place_N2) or len(place_N2) != columns * rows or place_N2.min() < 0:
        return False
    return bool((np.bincount(place_N2[:, 0] * rows + place_N2[:, 1]) == 1).all())


def _runs(flags: np.ndarray) -> list[int]:
    """Lengths of the runs of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    return [int(n) for n in edges[1::2] - edges[::2]]
