"""Loading holds little more than the weights: never a second copy of the model."""

from __future__ import annotations

import dataclasses
import functools
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import fp8_folder
import jax
import numpy as np
import pytest
from golden import reading

import dgemma_jax
from dgemma_jax.checkpoint import compressed, load
from dgemma_jax.checkpoint.host_array import ALIGNMENT, Room, empty
from dgemma_jax.checkpoint.names import Entry
from dgemma_jax.checkpoint.safetensors import TensorFiles
from dgemma_jax.config import MINI
from tools import synthetic

PROGRAM = Path(__file__).parent / "peak_memory.py"
ROOT = Path(__file__).parents[2]
CONFIG = dataclasses.replace(
    MINI,
    text=dataclasses.replace(MINI.text, vocab_size=2**16, num_experts=64, layer_types=MINI.text.layer_types[-2:]),
    image_token_id=3,
)
EMBEDDING = 2**16 * MINI.text.hidden_size * 2
"""The largest tensor, 92 MB; all others together are 97 MB."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("memory")
    synthetic.write(made, CONFIG, seed=0)
    return made


@pytest.fixture(scope="module")
def fp8_twin(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("memory") / "fp8"
    fp8_folder.write_fp8(folder, made)
    return made


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux to say what was resident")
@pytest.mark.parametrize("kind", ["", "int8", "int4", "fp8"])
def test_loading_takes_at_most_a_third_more_than_the_largest_tensor_beyond_the_weights(
    kind: str, folder: Path, request: pytest.FixtureRequest
) -> None:
    path, quantize = (request.getfixturevalue("fp8_twin"), "") if kind == "fp8" else (folder, kind)
    command = [sys.executable, str(PROGRAM), str(reading.FOLDER / "text_only"), str(path), quantize]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=True)
    most, weights = map(int, done.stdout.split())
    assert weights > 1.3 * EMBEDDING, "a second copy would be seen"
    assert most - weights < 1.3 * EMBEDDING


@pytest.mark.parametrize("mesh", [None, "expert=2,model=2"])
@pytest.mark.parametrize("kind", [None, "int8", "int4", "fp8"])
def test_large_tensors_are_the_same_in_pieces(
    kind: Any, mesh: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pieces of one row, and of several with a rest."""
    path = reading.FOLDER / "text_only"
    if kind == "fp8":
        fp8_folder.write_fp8(path, tmp_path / "fp8")
        path = tmp_path / "fp8"
    read = functools.partial(dgemma_jax.load, path, quantize=None if kind == "fp8" else kind, mesh=mesh)
    wanted = jax.tree.leaves(read().params)
    for size in (1, 3000):
        monkeypatch.setattr(load, "PIECE_BYTES", size)
        for one, other in zip(jax.tree.leaves(read().params), wanted, strict=True):
            assert one.dtype == other.dtype and one.sharding == other.sharding
            np.testing.assert_array_equal(one, other)


def test_a_large_tensor_is_read_by_several_threads(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two pieces are in hand at the same time: each waits for another."""
    part, meeting = compressed.part, threading.Barrier(2, timeout=60)

    def watched(files: TensorFiles, entry: Entry, dtype: Any = None, ranges: Any = None) -> np.ndarray:
        if entry.size * 2 == EMBEDDING:
            meeting.wait()
        return part(files, entry, dtype, ranges)

    monkeypatch.setattr(load, "PIECE_BYTES", -(-EMBEDDING // 4))
    monkeypatch.setattr(compressed, "part", watched)
    dgemma_jax.load(folder)


def test_arrays_begin_where_devices_want_them() -> None:
    for shape in [(3, 5), (), (1000, 7)]:
        array = empty(shape, np.dtype(np.float32))
        assert array.shape == shape and array.ctypes.data % ALIGNMENT == 0


def test_who_wants_more_room_than_is_left_waits_and_what_is_too_large_goes_alone() -> None:
    room, entered = Room(10), threading.Event()

    def large() -> None:
        with room.take(11):
            entered.set()

    with room.take(4), room.take(6):
        waiting = threading.Thread(target=large)
        waiting.start()
        assert not entered.wait(0.1)
    waiting.join(timeout=10)
    assert entered.is_set()
