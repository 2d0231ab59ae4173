"""Checkpoints to fine-tune."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_model import DEMO, one_layer, tiny_config, write_tiny

from dgemma_jax.prompt.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers, one of each kind, and a vision tower."""
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny(folder, tiny_config(Tokenizer.from_folder(DEMO)))
    return folder


@pytest.fixture(scope="session")
def tinier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One layer, text only."""
    folder = tmp_path_factory.mktemp("tinier")
    write_tiny(folder, one_layer(tiny_config(Tokenizer.from_folder(DEMO))))
    return folder
