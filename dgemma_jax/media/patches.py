"""One image as the vision tower reads it, and many as one array."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from typing import Self

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Patches:
    """Values in [0, 1] [N, P], places (x, y) [N, 2], and the soft tokens that they become. No padding.

    Nobody writes to the arrays: what is found out about them holds for every request that shows the image.
    """

    patches_NP: np.ndarray
    position_N2: np.ndarray
    soft_tokens: int

    @functools.cached_property
    def digest(self) -> bytes:
        """What the image is, in 64 bytes. Takes milliseconds for a megabyte."""
        digest = hashlib.blake2b(np.ascontiguousarray(self.patches_NP, np.float32).data)
        digest.update(np.ascontiguousarray(self.position_N2, np.int32).data)
        return digest.digest()

    @functools.cached_property
    def extremes(self) -> tuple[float, float]:
        """The smallest and the largest value, either NaN where one is."""
        return float(self.patches_NP.min(initial=np.inf)), float(self.patches_NP.max(initial=-np.inf))

    def studied(self) -> Self:
        """Itself, with all that is known about it: found out here, and not on the engine's thread."""
        _ = self.digest, self.extremes
        return self


def stacked(images: Sequence[Patches], patches: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Values [I, N, P] and places [I, N, 2] of at least one image, each padded to so many patches.

    patches: None: as many as the largest has. A patch at (-1, -1) is padding.
    """
    most = patches or max(len(image.patches_NP) for image in images)
    patches_INP = np.zeros((len(images), most, images[0].patches_NP.shape[1]), np.float32)
    positions_IN2 = np.full((len(images), most, 2), -1, np.int32)
    for index, image in enumerate(images):
        patches_INP[index, : len(image.patches_NP)] = image.patches_NP
        positions_IN2[index, : len(image.position_N2)] = image.position_N2
    return patches_INP, positions_IN2


def split(patches_INP: np.ndarray, positions_IN2: np.ndarray, per_soft_token: int) -> list[Patches]:
    """The images of such arrays; no copies where padding comes last."""
    return [_without_padding(*image, per_soft_token) for image in zip(patches_INP, positions_IN2, strict=True)]


def _without_padding(patches_NP: np.ndarray, position_N2: np.ndarray, per_soft_token: int) -> Patches:
    real_N = np.any(position_N2 != -1, axis=-1)
    count = int(np.sum(real_N))
    kept = slice(count) if real_N[:count].all() else real_N
    return Patches(patches_NP[kept], position_N2[kept], count // per_soft_token)
