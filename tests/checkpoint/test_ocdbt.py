"""An OCDBT database is whole, or the file that is not is named."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import tensorstore

from dgemma_jax.checkpoint import ocdbt


def write(folder: Path, values: dict[str, bytes]) -> tensorstore.KvStore:
    """Small nodes, so that the tree is deep; values apart from them."""
    config = {"max_decoded_node_bytes": 1000, "max_inline_value_bytes": 1}
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": f"file://{folder}/", "config": config}).result()
    transaction = tensorstore.Transaction()
    for key, value in values.items():
        store.with_transaction(transaction)[key] = value
    transaction.commit_sync()
    return store


ARRAYS = {f"text.layers.{layer}.weight/{name}": b"[1]" for layer in range(99) for name in ("zarr.json", "c/0")}


def test_a_whole_tree_of_any_depth_passes(tmp_path: Path) -> None:
    write(tmp_path, ARRAYS)
    base = tensorstore.KvStore.open(f"file://{tmp_path}/").result()
    root = tensorstore.ocdbt.dump(base).result()["versions"][-1]
    assert root["root_height"] > 1
    assert {entry["key"].decode() for entry in ocdbt._entries(base, tmp_path, root["root"]["location"])} == set(ARRAYS)
    ocdbt.require_whole(tmp_path)


def test_an_empty_tree_passes(tmp_path: Path) -> None:
    del write(tmp_path, {"only": b"1"})["only"]
    ocdbt.require_whole(tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    write(tmp_path, ARRAYS)
    for file in tmp_path.glob("d/*"):
        file.unlink()
    with pytest.raises(ValueError, match=r"d/[0-9a-f]+ is missing"):
        ocdbt.require_whole(tmp_path)


def test_a_file_cut_short_is_named(tmp_path: Path) -> None:
    write(tmp_path, ARRAYS)
    for file in tmp_path.glob("d/*"):  # one, or more where the writer was slow
        file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"[0-9a-f]+ is cut short: wanted \d+ bytes, found \d+") as raised:
        ocdbt.require_whole(tmp_path)
    said = re.search(r"([0-9a-f]+) is cut short: wanted (\d+) bytes, found (\d+)", str(raised.value))
    assert said is not None
    size = (tmp_path / "d" / said[1]).stat().st_size
    assert (int(said[2]), int(said[3])) == (size + 1, size)


def test_metadata_that_is_no_json_is_named(tmp_path: Path) -> None:
    write(tmp_path, {**ARRAYS, "text.layers.7.weight/zarr.json": b"{["})
    with pytest.raises(ValueError, match=r"text\.layers\.7\.weight/zarr\.json is no JSON"):
        ocdbt.require_whole(tmp_path)


def test_a_damaged_manifest_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, ARRAYS)
    (tmp_path / "manifest.ocdbt").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"manifest\.ocdbt"):
        ocdbt.require_whole(tmp_path)
