"""Checking what callers hand to the model. Every refusal is a ValueError that says what was wanted and found."""

from __future__ import annotations

import numpy as np
from jax.typing import ArrayLike

from dgemma_jax.config import ModelConfig, VisionConfig


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
    config: ModelConfig, tokens_BT: np.ndarray, patches: ArrayLike | None, positions: ArrayLike | None
) -> tuple[np.ndarray, np.ndarray] | None:
    """Patches and positions that fit the model and, image by image, the image tokens of the prompts; None without."""
    if patches is None and positions is None:
        found = int(np.sum(tokens_BT == config.image_token_id)) if config.vision else 0
        if found:
            raise ValueError(f"tokens hold {found} image tokens, but no patches were given")
        return None
    if config.vision is None:
        raise ValueError("this checkpoint has no vision tower: it reads no images")
    if patches is None or positions is None:
        raise ValueError("patches and patch_positions must be given together")
    patches_INP, positions_IN2 = _check_patches(config.vision, np.asarray(patches, np.float32), np.asarray(positions))
    made = [_soft_tokens(index, image, config.vision) for index, image in enumerate(positions_IN2)]
    held = [run for row in tokens_BT == config.image_token_id for run in _runs(row)]
    if held != made:
        raise ValueError(f"tokens hold images of {held} soft tokens, but the patches make images of {made}")
    return patches_INP, positions_IN2


def _check_patches(
    vision: VisionConfig, patches_INP: np.ndarray, positions_IN2: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    if patches_INP.ndim != 3 or patches_INP.shape[2] != vision.patch_values:
        raise ValueError(
            f"patches must have shape [images, patches, {vision.patch_values}], found {list(patches_INP.shape)}"
        )
    if positions_IN2.shape != (*patches_INP.shape[:2], 2):
        wanted = [*patches_INP.shape[:2], 2]
        raise ValueError(f"patch_positions must have shape {wanted}, found {list(positions_IN2.shape)}")
    if patches_INP.shape[1] % vision.patches_per_soft_token:
        raise ValueError(f"patches per image must be a multiple of {vision.patches_per_soft_token}: pad with (-1, -1)")
    if not (patches_INP.min(initial=0) >= 0 and patches_INP.max(initial=1) <= 1):
        raise ValueError(f"patches must be in [0, 1], found {patches_INP.min()} to {patches_INP.max()}")
    if positions_IN2.min(initial=-1) < -1 or positions_IN2.max(initial=-1) >= vision.position_embedding_size:
        raise ValueError(f"patch_positions must be in [-1, {vision.position_embedding_size})")
    return patches_INP, positions_IN2.astype(np.int32)


def _soft_tokens(index: int, positions_N2: np.ndarray, vision: VisionConfig) -> int:
    """Soft tokens of one image, whose patches must cover whole pooling cells of a full grid."""
    places = [(int(x), int(y)) for x, y in positions_N2 if (x, y) != (-1, -1)]
    columns, rows = (max((place[axis] for place in places), default=-1) + 1 for axis in (0, 1))
    whole = columns % vision.pooling_kernel_size == 0 and rows % vision.pooling_kernel_size == 0
    if not places or not whole or sorted(places) != [(x, y) for x in range(columns) for y in range(rows)]:
        raise ValueError(
            f"patch_positions of image {index} must cover a grid whose sides are multiples of "
            f"{vision.pooling_kernel_size}, each place once; found {len(places)} patches within {columns} x {rows}"
        )
    return len(places) // vision.patches_per_soft_token


def _runs(flags: np.ndarray) -> list[int]:
    """Lengths of the runs of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    return [int(n) for n in edges[1::2] - edges[::2]]
