"""Tensors of a checkpoint folder: read as they were written, and every damage named."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors
from hypothesis import given, settings
from hypothesis import strategies as st

from dgemma_jax.checkpoint.safetensors import CheckpointError, TensorFiles
from dgemma_jax.checkpoint.safetensors_writing import write_sharded, write_tensors

BF16 = np.dtype(ml_dtypes.bfloat16)


def arrays() -> dict[str, np.ndarray]:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    return {
        "a.weight": values.astype(BF16),
        "b.weight": values + 0.5,
        "c.weight": values.astype(np.float16).T,
        "d.scalar": np.asarray(7, np.float32),
        "e.empty": np.zeros((0, 4), BF16),
    }


def file_bytes(header: Any, data: bytes = b"") -> bytes:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(encoded).to_bytes(8, "little") + encoded + data


def entry(*offsets: Any, dtype: Any = "F32", shape: Any = (1,)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": list(offsets)}


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        TensorFiles.open(folder)
    message = str(caught.value)
    assert str(folder) in message and "\n" not in message
    return message


def assert_holds(files: TensorFiles, expected: dict[str, np.ndarray]) -> None:
    assert files.names == tuple(sorted(expected))
    assert files.nbytes == sum(array.nbytes for array in expected.values())
    for name, array in expected.items():
        assert (files.shape(name), files.dtype(name)) == (array.shape, array.dtype)
        np.testing.assert_array_equal(files.read(name), array)


def two_files(folder: Path, **changed: str | None) -> Path:
    """Tensors a and b in two files with an index; a changed entry of the index is set, or left out when None."""
    weight_map: dict[str, str | None] = {"a": "one.safetensors", "b": "two.safetensors"} | changed
    write_tensors(folder / "one.safetensors", {"a": np.zeros(2, np.float32)})
    write_tensors(folder / "two.safetensors", {"b": np.ones(3, np.float32)})
    index = {"weight_map": {name: file for name, file in weight_map.items() if file is not None}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_single_file_is_read_as_written(tmp_path: Path) -> None:
    write_tensors(tmp_path / "model.safetensors", arrays(), {"format": "pt"})
    assert_holds(TensorFiles.open(tmp_path), arrays())


def test_the_formats_own_library_reads_what_is_written(tmp_path: Path) -> None:
    write_tensors(tmp_path / "model.safetensors", arrays(), {"format": "pt"})
    read = dict(safetensors.deserialize((tmp_path / "model.safetensors").read_bytes()))
    assert sorted(read) == sorted(arrays())
    for name, array in arrays().items():
        assert (tuple(read[name]["shape"]), bytes(read[name]["data"])) == (array.shape, array.tobytes())


def test_reads_are_views_of_the_mapped_file(tmp_path: Path) -> None:
    write_tensors(tmp_path / "model.safetensors", arrays())
    files = TensorFiles.open(tmp_path)
    first, again = files.read("b.weight"), files.read("b.weight")
    assert isinstance(first, np.memmap) and np.shares_memory(first, again)
    assert not first.flags.writeable


def test_written_tensors_are_aligned(tmp_path: Path) -> None:
    write_tensors(tmp_path / "model.safetensors", {"a": np.zeros(3, BF16), "b": np.zeros(3, np.float32)})
    files = TensorFiles.open(tmp_path)
    assert all(files.read(name).flags.aligned for name in files.names)


def test_views_outlive_the_files_object(tmp_path: Path) -> None:
    write_tensors(tmp_path / "model.safetensors", arrays())
    view = TensorFiles.open(tmp_path).read("b.weight")
    np.testing.assert_array_equal(view, arrays()["b.weight"])


def test_unknown_name_is_refused(tmp_path: Path) -> None:
    write_tensors(tmp_path / "model.safetensors", arrays())
    files = TensorFiles.open(tmp_path)
    assert "a.weight" in files and "z" not in files
    for ask in (files.shape, files.dtype, files.read):
        with pytest.raises(CheckpointError, match="has no tensor z"):
            ask("z")


def test_several_files_are_read_through_their_index(tmp_path: Path) -> None:
    expected = {"a": np.zeros(2, np.float32), "b": np.ones(3, np.float32)}
    assert_holds(TensorFiles.open(two_files(tmp_path)), expected)


DAMAGED = {
    "empty": (b"", "is truncated"),
    "length": (b"\x00\x00", "is truncated"),
    "header": (file_bytes({})[:-1], "is truncated"),
    "data": (file_bytes({"a": entry(0, 4)}, b"123"), "is truncated: its header describes"),
    "huge header": (b"PK\x03\x04" * 4, "is not a safetensors file"),
    "not JSON": (file_bytes(b"{nonsense"), "the header is not JSON"),
    "not UTF-8": (file_bytes(b'{"\xff": 1}'), "the header is not JSON"),
    "not an object": (file_bytes([]), "is not a safetensors file"),
    "name twice": (file_bytes(b'{"a": {}, "a": {}}'), "a name appears twice"),
    "metadata": (file_bytes({"__metadata__": {"format": 1}}), "__metadata__ is not an object of strings"),
    "entry": (file_bytes({"a": 1}), "tensor a is not described by dtype, shape and data_offsets"),
    "entry keys": (file_bytes({"a": {"dtype": "F32"}}), "tensor a is not described by"),
    "overlap": (file_bytes({"a": entry(0, 4), "b": entry(2, 6)}, b"123456"), "tensor b overlaps the one before it"),
    "gap": (file_bytes({"a": entry(0, 4), "b": entry(6, 10)}, b"1234567890"), "tensor b leaves a gap before it"),
    "rest": (file_bytes({"a": entry(0, 4)}, b"12345"), "1 bytes after the last tensor belong to none"),
    "size": (file_bytes({"a": entry(0, 4, shape=[2])}, b"1234"), "tensor a needs 8 bytes"),
    "backwards": (file_bytes({"a": entry(4, 0)}, b"1234"), "tensor a needs 4 bytes"),
    "negative": (file_bytes({"a": entry(0, 4, shape=[-1])}, b"1234"), "must be whole numbers"),
    "fraction": (file_bytes({"a": entry(0, 4.0)}, b"1234"), "must be whole numbers"),
    "three offsets": (file_bytes({"a": entry(0, 4, 8)}, b"1234"), "must be whole numbers"),
    "dtype": (file_bytes({"a": entry(0, 4, dtype="I32")}, b"1234"), "tensor a has dtype I32; supported are BF16"),
    "dtype list": (file_bytes({"a": entry(0, 4, dtype=["F32"])}, b"1234"), "tensor a has dtype ['F32']"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_file_is_named(tmp_path: Path, damage: str) -> None:
    content, message = DAMAGED[damage]
    (tmp_path / "model.safetensors").write_bytes(content)
    found = refusal(tmp_path)
    assert message in found and str(tmp_path / "model.safetensors") in found


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"b": "three.safetensors"}, "names three.safetensors, which is not in the folder"),
        ({"c": "two.safetensors"}, "names tensor c in two.safetensors, which does not have it"),
        ({"b": "one.safetensors", "c": "two.safetensors"}, "names tensor b in one.safetensors, which does not have it"),
        (
            {"b": None, "c": "two.safetensors"},
            "two.safetensors has a tensor that model.safetensors.index.json does not",
        ),
        ({"b": "../two.safetensors"}, "'../two.safetensors' is not the name of a file next to the index"),
    ],
)
def test_index_and_files_must_agree(tmp_path: Path, changed: dict[str, str | None], message: str) -> None:
    assert message in refusal(two_files(tmp_path, **changed))


def test_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    two_files(tmp_path)
    write_tensors(tmp_path / "two.safetensors", {"a": np.zeros(2, np.float32), "b": np.ones(3, np.float32)})
    assert "two.safetensors: tensor a is in one.safetensors too" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{", "the index is not JSON"),
        ("[]", "the index is not a JSON object"),
        ("{}", 'wanted "weight_map"'),
        ('{"weight_map": {}}', 'wanted "weight_map"'),
        ('{"weight_map": {"a": 1}}', "1 is not the name of a file"),
    ],
)
def test_malformed_index_is_named(tmp_path: Path, index: str, message: str) -> None:
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(index)
    found = refusal(tmp_path)
    assert message in found and str(path) in found


def test_folder_without_weights_says_what_was_looked_for(tmp_path: Path) -> None:
    message = refusal(tmp_path)
    assert "looked for model.safetensors and model.safetensors.index.json" in message


def test_other_weight_formats_are_named_as_unread(tmp_path: Path) -> None:
    for name in ("pytorch_model.bin", "model.gguf"):
        (tmp_path / name).touch()
    assert "model.gguf, pytorch_model.bin cannot be read, only safetensors" in refusal(tmp_path)


def test_shards_without_an_index_are_named(tmp_path: Path) -> None:
    (two_files(tmp_path) / "model.safetensors.index.json").unlink()
    assert "several files need the index, found one.safetensors, two.safetensors" in refusal(tmp_path)


def test_missing_folder_says_so(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "nowhere")


def test_unsupported_dtype_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="tensor a has dtype int32"):
        write_tensors(tmp_path / "model.safetensors", {"a": np.zeros(1, np.int32)})
    assert not (tmp_path / "model.safetensors").exists()


def test_shards_hold_what_they_were_given(tmp_path: Path) -> None:
    expected = {f"layer.{index}": np.full((4, 4), index, np.float32) for index in range(5)}
    total = write_sharded(tmp_path, iter(expected.items()), max_shard_bytes=128)
    names = ["model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors", "model-00003-of-00003.safetensors"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [*names, "model.safetensors.index.json"]
    assert json.loads((tmp_path / "model.safetensors.index.json").read_text())["metadata"] == {"total_size": total}
    assert total == 5 * 64
    assert_holds(TensorFiles.open(tmp_path), expected)


def test_what_fits_one_shard_needs_no_index(tmp_path: Path) -> None:
    write_sharded(tmp_path / "new", iter(arrays().items()))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["model.safetensors"]
    assert_holds(TensorFiles.open(tmp_path / "new"), arrays())


def test_tensor_larger_than_a_shard_gets_its_own(tmp_path: Path) -> None:
    expected = {name: np.zeros(size, np.float32) for name, size in (("a", 1), ("b", 100), ("c", 1))}
    write_sharded(tmp_path, iter(expected.items()), max_shard_bytes=64)
    assert len(list(tmp_path.glob("model-*-of-00003.safetensors"))) == 3
    assert_holds(TensorFiles.open(tmp_path), expected)


def test_sharded_writing_takes_tensors_only_as_it_needs_them(tmp_path: Path) -> None:
    written_before: list[int] = []

    def tensors() -> Iterator[tuple[str, np.ndarray]]:
        for index in range(4):
            written_before.append(len(list(tmp_path.iterdir())))
            yield f"layer.{index}", np.zeros(16, np.float32)

    write_sharded(tmp_path, tensors(), max_shard_bytes=64)
    assert written_before == [0, 0, 1, 2]


def failing() -> Iterator[tuple[str, np.ndarray]]:
    yield "a", np.zeros(16, np.float32)
    yield "b", np.zeros(16, np.float32)
    raise CheckpointError("no more")


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (failing, "no more"),
        (lambda: iter([("a", np.zeros(16, np.float32))] * 2), "tensor a comes twice"),
        (lambda: iter([("a", np.zeros(16, np.float32)), ("b", np.zeros(1, np.int8))]), "tensor b has dtype int8"),
        (lambda: iter([]), "no tensors to write"),
    ],
)
def test_failed_writing_leaves_nothing(tmp_path: Path, tensors: Callable[[], Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        write_sharded(tmp_path, tensors(), max_shard_bytes=64)
    assert not list(tmp_path.iterdir())


def test_weights_that_are_there_are_not_mixed_with_new_ones(tmp_path: Path) -> None:
    write_sharded(tmp_path, iter(arrays().items()))
    with pytest.raises(CheckpointError, match=r"already has weights: model\.safetensors"):
        write_sharded(tmp_path, iter(arrays().items()))


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def small_file() -> bytes:
    first = entry(0, 12, dtype="BF16", shape=[2, 3])
    second = entry(12, 20, shape=[2])
    return file_bytes({"__metadata__": {"format": "pt"}, "first": first, "second": second}, bytes(range(20)))


def assert_refused_or_right(folder: Path, content: bytes) -> None:
    """Either CheckpointError, or the very tensors that the format's own library finds in these bytes."""
    # A fresh name: the previous example's file may still be mapped.
    (folder / "model.safetensors").unlink(missing_ok=True)
    (folder / "model.safetensors").write_bytes(content)
    try:
        files = TensorFiles.open(folder)
        read = {name: files.read(name) for name in files.names}
    except CheckpointError:
        return
    expected = dict(safetensors.deserialize(content))
    assert sorted(read) == sorted(expected)
    for name, array in read.items():
        assert array.shape == tuple(expected[name]["shape"])
        assert array.tobytes() == bytes(expected[name]["data"])


@settings(max_examples=100, deadline=None)
@given(length=st.integers(0, len(small_file())))
def test_truncated_file_never_gives_wrong_tensors(scratch: Path, length: int) -> None:
    assert_refused_or_right(scratch, small_file()[:length])


@settings(max_examples=300, deadline=None)
@given(changes=st.dictionaries(st.integers(0, len(small_file()) - 1), st.integers(0, 255), min_size=1, max_size=4))
def test_corrupted_file_never_gives_wrong_tensors(scratch: Path, changes: dict[int, int]) -> None:
    content = bytearray(small_file())
    for position, value in changes.items():
        content[position] = value
    assert_refused_or_right(scratch, bytes(content))


@pytest.mark.parametrize("ranges", [((0, 4), (0, 6)), ((1, 3), (0, 6)), ((0, 4), (2, 5)), ((3, 4), (0, 1))])
def test_a_part_is_the_slice_of_the_whole_in_any_shape(tmp_path: Path, ranges: tuple) -> None:
    values = np.arange(48, dtype=np.float32).reshape(8, 6)
    write_tensors(tmp_path / "model.safetensors", {"first": np.ones(3, np.float32), "x": values}, {})
    found = TensorFiles.open(tmp_path).read_part("x", (4, 6, 2), (*ranges, (0, 2)), np.dtype("float16"))
    expected = values.reshape(4, 6, 2)[tuple(slice(*one) for one in ranges)]
    np.testing.assert_array_equal(found, expected.astype(np.float16))
    assert found.base is None or found.base.nbytes <= values.nbytes, "nothing of the file stays mapped"


def test_a_file_that_became_shorter_is_no_part(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_tensors(path, {"x": np.arange(48, dtype=np.float32).reshape(8, 6)}, {})
    files = TensorFiles.open(tmp_path)
    os.truncate(path, path.stat().st_size - 8)
    with pytest.raises(CheckpointError, match="ends within tensor x"):
        files.read_part("x", (8, 6), ((4, 8), (0, 6)), np.dtype("float32"))


def test_a_disk_that_is_full_leaves_no_part_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: np.ndarray, file: object) -> None:
        raise OSError("No space left on device")

    class Full(np.ndarray):
        tofile = full

    monkeypatch.setattr(np, "ascontiguousarray", lambda x: np.zeros(1).view(Full))
    with pytest.raises(OSError, match="No space left"):
        write_sharded(tmp_path, iter(arrays().items()))
    assert list(tmp_path.iterdir()) == []
