"""The processor's settings, written and read back."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from dgemma_jax.config import DIFFUSION_GEMMA_26B_A4B, ProcessorConfig
from dgemma_jax.processor_json import read_processor_config, write_processor_config

DEMO = ProcessorConfig(
    patch_size=8, pooling_kernel_size=2, max_soft_tokens=16, video_max_soft_tokens=16, video_num_frames=4
)


@pytest.mark.parametrize("processor", [ProcessorConfig(), DEMO, ProcessorConfig(do_resize=False)])
def test_written_settings_are_read_back(processor: ProcessorConfig, tmp_path: Path) -> None:
    assert DIFFUSION_GEMMA_26B_A4B.vision is not None
    vision = dataclasses.replace(
        DIFFUSION_GEMMA_26B_A4B.vision,
        patch_size=processor.patch_size,
        pooling_kernel_size=processor.pooling_kernel_size,
    )
    write_processor_config(tmp_path / "new", processor)
    assert (
        read_processor_config(tmp_path / "new", dataclasses.replace(DIFFUSION_GEMMA_26B_A4B, vision=vision))
        == processor
    )
