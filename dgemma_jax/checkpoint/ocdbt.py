"""The files of an OCDBT database, in which Orbax keeps its arrays: are all of them there, and whole?

    require_whole(FOLDER)      FOLDER/manifest.ocdbt -> B+tree nodes -> values, by their place in the files

Asked before Orbax is, which opens all arrays at once and leaves at the first that fails: the opens still under way then
call back, from TensorStore's own threads, into an event loop that Orbax has closed, and each prints a traceback.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorstore

ARRAY_METADATA = (b"zarr.json", b".zarray")


def require_whole(folder: Path) -> None:
    """
    Raises:
        ValueError: a file that is missing, cut short or cannot be parsed, by name.
    """
    store = tensorstore.KvStore.open({"driver": "file", "path": f"{folder}/"}).result()
    manifest = _dump(store, None)
    root = manifest["versions"][-1]["root"]
    if "location" in root:  # a tree without entries has none
        for entry in _entries(store, folder, root["location"]):
            _require_entry(store, folder, entry)


def _entries(store: tensorstore.KvStore, folder: Path, location: str) -> Iterator[dict[str, Any]]:
    """The values below a node, each with its whole key."""
    _require_span(folder, location)
    for entry in _dump(store, location)["entries"]:
        if "location" not in entry:
            yield entry
            continue
        shared = entry.get("subtree_common_prefix", b"")
        for below in _entries(store, folder, entry["location"]):
            yield {**below, "key": shared + below["key"]}


def _require_entry(store: tensorstore.KvStore, folder: Path, entry: dict[str, Any]) -> None:
    location = entry.get("indirect_value")
    if location is not None:
        _require_span(folder, location)
    if entry["key"].endswith(ARRAY_METADATA):
        value = entry["inline_value"] if location is None else _dump(store, location)
        try:
            json.loads(value)
        except ValueError as error:
            raise ValueError(f"{entry['key'].decode(errors='replace')} is no JSON: {error}") from error


def _require_span(folder: Path, location: str) -> None:
    """`location` is TensorStore's "kind:base folder:file:offset:length"."""
    _, base, name, offset, length = location.split(":")
    file = folder / base / name
    found, wanted = file.stat().st_size if file.is_file() else None, int(offset) + int(length)
    if found is None:
        raise ValueError(f"{file} is missing")
    if found < wanted:
        raise ValueError(f"{file} is cut short: wanted {wanted} bytes, found {found}")


def _dump(store: tensorstore.KvStore, location: str | None) -> Any:
    return tensorstore.ocdbt.dump(store, location).result()
