"""Pictures, sampling and prompts against transformers' Gemma 4 processor.

Needs torch and transformers: `make test-reference`.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from films import film, number
from PIL import Image

from dgemma_jax.config import ProcessorConfig
from dgemma_jax.media.image import soft_token_budgets, to_patches
from dgemma_jax.media.video import read_video, stamp
from dgemma_jax.processor_json import write_processor_config

pytestmark = [
    pytest.mark.reference,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # torch's and transformers' own
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

PUBLISHED = ProcessorConfig()
SIZES = [(640, 480), (480, 640), (1, 1), (1, 700), (2000, 3), (47, 49), (768, 768), (816, 720), (333, 1777), (4000, 41)]


def picture(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def check(image: Image.Image, processor: ProcessorConfig, budget: int) -> None:
    from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil

    size, pool = processor.patch_size, processor.pooling_kernel_size
    reference = Gemma4ImageProcessorPil(patch_size=size, pooling_kernel_size=pool, max_soft_tokens=budget)
    expected = reference(image, return_tensors="np")
    made = to_patches(image, processor, budget)
    real = len(made.patches_NP)
    assert made.soft_tokens == expected["num_soft_tokens_per_image"][0]
    np.testing.assert_array_equal(made.patches_NP, expected["pixel_values"][0, :real])
    np.testing.assert_array_equal(made.position_N2, expected["image_position_ids"][0, :real])
    assert (expected["image_position_ids"][0, real:] == -1).all()


@pytest.mark.parametrize("size", SIZES)
def test_patches_are_those_of_the_reference(size: tuple[int, int]) -> None:
    check(picture(*size), PUBLISHED, 280)


@pytest.mark.parametrize("budget", soft_token_budgets(PUBLISHED))
def test_every_published_budget_gives_the_patches_of_the_reference(budget: int) -> None:
    check(picture(500, 375), PUBLISHED, budget)


def test_other_patch_sizes_give_the_patches_of_the_reference() -> None:
    check(picture(90, 120), ProcessorConfig(patch_size=8, pooling_kernel_size=2), 70)


def test_grids_are_those_of_the_reference_for_any_sides() -> None:
    from transformers.models.gemma4.image_processing_pil_gemma4 import get_aspect_ratio_preserving_size

    from dgemma_jax.media.image import _fit

    draws = np.random.default_rng(0)
    for width, height in (10 ** draws.uniform(0, 4.3, (5000, 2))).astype(int).tolist():
        for budget in (16, 70, 280, 1120):
            expected = get_aspect_ratio_preserving_size(height, width, 16, budget * 9, 3)
            columns, rows = _fit(width, height, 48, budget)
            assert (rows * 48, columns * 48) == expected, (width, height, budget)


@pytest.mark.parametrize("size", [(640, 480), (3000, 17), (1920, 1080)])
def test_the_torchvision_form_differs_by_two_shades_at_most(size: tuple[int, int]) -> None:
    """torchvision resizes bytes through this function of torch."""
    import torch

    image = picture(*size)
    made = to_patches(image, PUBLISHED)
    columns, rows = (made.position_N2.max(axis=0) + 1).tolist()
    pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None]
    sides = [16 * rows, 16 * columns]
    resized = torch.nn.functional.interpolate(pixels, size=sides, mode="bicubic", antialias=True)[0]
    expected = resized.reshape(3, rows, 16, columns, 16).permute(1, 3, 2, 4, 0).reshape(rows * columns, -1).numpy()
    difference = np.abs(np.rint(made.patches_NP * 255) - expected)
    assert difference.max() <= 2 and np.mean(difference > 0) < 0.01


@pytest.mark.parametrize("frames", [32, 33, 100])
def test_sampled_frames_and_stamps_are_those_of_the_reference(frames: int) -> None:
    from transformers.video_utils import VideoMetadata, default_sample_indices_fn

    metadata: Any = VideoMetadata(total_num_frames=frames, fps=10.0)
    metadata.frames_indices = default_sample_indices_fn(metadata, num_frames=32)
    shown = read_video(film(frames, rate=10), PUBLISHED)
    assert [number(frame.image) for frame in shown] == [index % 31 for index in metadata.frames_indices]
    np.testing.assert_allclose([frame.seconds for frame in shown], metadata.timestamps, atol=1e-9)
    assert _reference_text(metadata) == " ".join(f"{stamp(frame.seconds)} (..)" for frame in shown)


def _reference_text(metadata: Any) -> str:
    from transformers.models.gemma4.processing_gemma4 import Gemma4Processor

    tokens: Any = SimpleNamespace(boi_token="(", video_token=".", eoi_token=")")
    inputs = {"num_soft_tokens_per_video": [2], "video_metadata": [metadata]}
    return Gemma4Processor.replace_video_token(tokens, inputs, 0)


def test_the_reference_reads_the_settings_we_write(tmp_path: Path) -> None:
    from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil

    write_processor_config(tmp_path, ProcessorConfig(patch_size=8, pooling_kernel_size=2, max_soft_tokens=140))
    reference = Gemma4ImageProcessorPil.from_pretrained(tmp_path)
    found = reference.patch_size, reference.pooling_kernel_size, reference.max_soft_tokens
    assert found == (8, 2, 140) and reference.rescale_factor == 1 / 255 and not reference.do_normalize
