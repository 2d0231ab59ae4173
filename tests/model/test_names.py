"""The parameters: their published names, shapes and bytes, and how our own names read."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from golden import reading

import dgemma_jax
from dgemma_jax.checkpoint.names import entries
from dgemma_jax.checkpoint.safetensors import TensorFiles
from dgemma_jax.config import DIFFUSION_GEMMA_26B_A4B

SOURCE = Path(dgemma_jax.__file__).parent


def test_the_published_model_has_its_tensors_and_bytes() -> None:
    table = list(entries(DIFFUSION_GEMMA_26B_A4B))
    assert len({entry.name for entry in table}) == len(table) == 1047
    assert 2 * sum(entry.size for entry in table) == 51_647_562_456


@pytest.mark.parametrize("name", reading.NAMES)
def test_names_and_shapes_are_those_that_transformers_writes(name: str) -> None:
    files = TensorFiles.open(reading.FOLDER / name)
    written = {tensor: files.shape(tensor) for tensor in files.names}
    assert {entry.name: entry.published_shape for entry in entries(reading.model(name).config)} == written


def test_every_tensor_name_ends_in_letters_of_the_key() -> None:
    """`x_BTD` has axes B, T and D; the key is the docstring of `dgemma_jax.model`."""
    key = set(re.findall(r"(?:\s{2}|and )([A-Z]) \w", (SOURCE / "model" / "__init__.py").read_text()))
    unknown = []
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            name = {ast.Name: "id", ast.arg: "arg", ast.Attribute: "attr"}.get(type(node), "")
            suffix = re.search(r"^[a-z]\w*_([A-Z0-9]+)$", getattr(node, name, ""))
            if suffix and not set(re.sub(r"\d", "", suffix[1])) <= key:
                unknown.append(f"{path.relative_to(SOURCE)}:{node.lineno}: {getattr(node, name)}")
    assert not unknown, "\n".join(unknown)
