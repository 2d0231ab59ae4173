"""From a checkpoint folder to parameters: every tensor accounted for, then read, part by part, to its devices."""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from tqdm import tqdm

from dgemma_jax.checkpoint import compressed
from dgemma_jax.checkpoint.host_array import Room, empty
from dgemma_jax.checkpoint.match import require_shapes
from dgemma_jax.checkpoint.names import Entry, abstract_model, entries
from dgemma_jax.checkpoint.names import Path as ParameterPath
from dgemma_jax.checkpoint.quantize import Kind, is_quantizable, quantized_arrays
from dgemma_jax.checkpoint.quantized_shards import abstract, from_files
from dgemma_jax.checkpoint.safetensors import TensorFiles
from dgemma_jax.config import ModelConfig
from dgemma_jax.model.quantized import Quantized
from dgemma_jax.sharding import parameter_sharding, spread

ORBAX_FOLDER = "orbax"
THREADS = 4
"""Tensors that are read at a time, and pieces of them: there is room for one alone of those of a layer's experts, which
are 1 GB in the 26B."""
PIECE_BYTES = 2**20
"""Of a piece as it is on the device; what is smaller is read at once."""

Place = jax.sharding.Sharding | Quantized
"""Where a tensor goes; of one that is quantised, where its parts do."""

logger = logging.getLogger(__name__)


def require_match(wanted: list[Entry], files: TensorFiles) -> None:
    """Raises `CheckpointError` listing all that is missing, unexpected or of another shape, by name.

    A separate `lm_head.weight` is accepted where it repeats the embedding: the head is tied to it.
    """
    tied = _tied_copies(files)
    found = {name: files.shape(name) for name in files.names if name not in tied}
    tensors: dict[str, tuple[int, ...]] = {}
    for entry in wanted:
        tensors |= compressed.stored_shapes(entry, files)
    require_shapes(files.folder, tensors, found)
    compressed.require_dtypes(wanted, files)


def _tied_copies(files: TensorFiles) -> set[str]:
    head, embedding = "lm_head.weight", "model.decoder.embed_tokens.weight"
    both = head in files and embedding in files and files.shape(head) == files.shape(embedding)
    return {head} if both and _equal(files.read(head), files.read(embedding)) else set()


def _equal(one: np.ndarray, other: np.ndarray) -> bool:
    """Some rows at a time: a comparison of all makes an array as long as the vocabulary is wide."""
    return all(np.array_equal(one[row : row + 1024], other[row : row + 1024]) for row in range(0, len(one), 1024))


def stored_kind(folder: Path) -> Kind | None:
    """How the matrices of a checkpoint folder are quantised as they are stored; None for full ones.

    Raises `CheckpointError` for an Orbax tree that cannot be read.
    """
    if not (folder / ORBAX_FOLDER).is_dir():
        return None
    from dgemma_jax.checkpoint.orbax_parameters import kind_of, orbax  # most folders hold safetensors: no need to wait

    return kind_of(orbax.stored(folder / ORBAX_FOLDER))


def stores_fp8(folder: Path, config: ModelConfig) -> bool:
    """Whether matrices of a checkpoint folder are stored as FP8. Raises `CheckpointError` for files without headers."""
    if (folder / ORBAX_FOLDER).is_dir():
        return False
    files = TensorFiles.open(folder)
    return any(compressed.is_compressed(entry, files) for entry in entries(config))


def load_parameters(
    folder: Path,
    config: ModelConfig,
    dtype: jnp.dtype,
    backend: str,
    head: str = "materialised",
    quantize: Kind | None = None,
    mesh: Mesh | None = None,
    keep_fp8: bool = False,
) -> tuple[nnx.GraphDef, nnx.State]:
    """Structure and parameters of the model, in `dtype`, on the default device or spread over a mesh.

    Each device reads its own part of each tensor; of a group of processes each reads for its own devices. A bar on
    stderr, if that is a terminal, shows how fast. Weights that are quantised are so tensor by tensor, in shards too.

    Weights that are stored as FP8 are full in `dtype`, or `Quantized` with `keep_fp8`, which needs one device too.

    Raises `CheckpointError` for files that are damaged or do not fit the model.
    """
    graphdef, state = nnx.split(spread(abstract_model(config, dtype, backend, head), mesh))
    flat = list(nnx.to_flat_state(state))
    places: dict[ParameterPath, Place] = {path: parameter_sharding(leaf, mesh) for path, leaf in flat}
    if (folder / ORBAX_FOLDER).is_dir():
        from dgemma_jax.checkpoint.orbax_parameters import load_orbax

        found = load_orbax(folder / ORBAX_FOLDER, flat, dtype, quantize, mesh)
        return graphdef, nnx.from_flat_state([(path, leaf.replace(found[path])) for path, leaf in flat])
    files = TensorFiles.open(folder)
    table = list(entries(config))
    require_match(table, files)
    if quantize is not None:
        places |= {path: abstract(path, leaf, quantize, mesh) for path, leaf in flat if is_quantizable(path)}
    kept = {entry.path for entry in table if compressed.is_compressed(entry, files)} if keep_fp8 else set()
    arrays = _read_all(files, table, places, dtype, quantize, kept)
    return graphdef, nnx.from_flat_state([(path, leaf.replace(arrays[path])) for path, leaf in flat])


def _read_all(
    files: TensorFiles,
    table: list[Entry],
    places: dict[ParameterPath, Place],
    dtype: jnp.dtype,
    quantize: Kind | None,
    kept: set[ParameterPath],
) -> dict[ParameterPath, jax.Array | Quantized]:
    """Every tensor on its devices, several at a time."""
    started = time.monotonic()
    size = sum(compressed.stored_bytes(entry, files) for entry in table)
    # One large tensor at a time, or several small ones: what is read and what is made of it are there together.
    width = max(dtype.itemsize, *(files.dtype(entry.name).itemsize for entry in table if entry.name in files))
    room = Room(max(entry.size for entry in table) * width)
    with (
        ThreadPoolExecutor(THREADS) as pool,
        ThreadPoolExecutor(THREADS) as helpers,
        tqdm(total=size, unit="B", unit_scale=True, desc="loading", disable=None) as bar,
    ):

        def read(entry: Entry) -> jax.Array | Quantized:
            with room.take(entry.size * (1 if entry.path in kept else width)):
                return jax.block_until_ready(read_now(entry))

        def read_now(entry: Entry) -> jax.Array | Quantized:
            place = places[entry.path]
            value: jax.Array | Quantized
            if isinstance(place, Quantized):
                assert quantize is not None
                value = _quantized(files, entry, place, quantize, helpers)
            elif entry.path in kept:
                values, scale = compressed.read(files, entry)
                value = Quantized(jax.device_put(values.view(np.uint8)), jax.device_put(scale), 8)
            else:
                value = _read(files, entry, place, dtype, helpers)
            bar.update(compressed.stored_bytes(entry, files))
            return value

        found = dict(zip((entry.path for entry in table), pool.map(read, table), strict=True))
    seconds = time.monotonic() - started
    logger.info("loaded %.2f GB in %.1f s, %.2f GB/s", size / 1e9, seconds, size / 1e9 / max(seconds, 1e-9))
    return found


def _read(
    files: TensorFiles, entry: Entry, place: jax.sharding.Sharding, dtype: jnp.dtype, helpers: Executor
) -> jax.Array:
    """Part by part: of a tensor that is cut never more than one part is in host memory."""
    if isinstance(place, jax.sharding.SingleDeviceSharding):
        # Not tied to the device: programs are compiled anew for arguments that are, where others were not.
        return jax.device_put(_part(files, entry, dtype, [(0, size) for size in entry.shape], helpers))
    devices: dict[tuple[tuple[int, int], ...], list[jax.Device]] = {}
    for device, index in place.addressable_devices_indices_map(entry.shape).items():
        cuts = (slice(None),) * len(entry.shape) if index is None else index
        ranges = tuple(cut.indices(size)[:2] for cut, size in zip(cuts, entry.shape, strict=True))
        devices.setdefault(ranges, []).append(device)
    arrays = []
    for ranges, holders in devices.items():  # a part that several devices hold is read once
        part = _part(files, entry, dtype, ranges, helpers)
        arrays += jax.block_until_ready([jax.device_put(part, device) for device in holders])
    return jax.make_array_from_single_device_arrays(entry.shape, place, arrays)


def _part(
    files: TensorFiles, entry: Entry, dtype: jnp.dtype, ranges: Sequence[tuple[int, int]], helpers: Executor
) -> np.ndarray:
    """A part of a tensor in host memory, from start to stop on each axis."""
    shape = tuple(stop - start for start, stop in ranges)
    if math.prod(shape) * dtype.itemsize <= PIECE_BYTES or not _has_pieces(files, entry):
        return compressed.part(files, entry, dtype, ranges)
    whole = empty(shape, dtype)

    def make(start: int, stop: int) -> tuple[np.ndarray, ...]:
        first = ranges[0][0]
        return (compressed.part(files, entry, dtype, [(first + start, first + stop), *ranges[1:]]),)

    _fill((whole,), make, helpers)
    return whole


def _quantized(files: TensorFiles, entry: Entry, target: Quantized, kind: Kind, helpers: Executor) -> Quantized:
    """As `from_files`; on one device never more than a few pieces are in full precision."""
    is_spread = isinstance(target.values.sharding, NamedSharding)
    if is_spread or target.values.size <= PIECE_BYTES or not _has_pieces(files, entry):
        return from_files(files, entry, target, kind)
    values, scale = (empty(struct.shape, struct.dtype) for struct in (target.values, target.scale))

    def make(start: int, stop: int) -> tuple[np.ndarray, ...]:
        ranges = [(start, stop), *((0, size) for size in entry.shape[1:])]
        return quantized_arrays(compressed.part(files, entry, None, ranges), entry.path, kind)

    _fill((values, scale), make, helpers)
    return dataclasses.replace(target, values=jax.device_put(values), scale=jax.device_put(scale))


def _has_pieces(files: TensorFiles, entry: Entry) -> bool:
    """Whether a part is read without the rest: a matrix of 8-bit floats is not, but each expert has its own."""
    return entry.path[-2] == "experts" or not compressed.is_compressed(entry, files)


def _fill(
    arrays: tuple[np.ndarray, ...], make: Callable[[int, int], tuple[np.ndarray, ...]], helpers: Executor
) -> None:
    """Fills arrays, from start to stop on the first axis with what `make` makes, several pieces at a time."""
    rows = len(arrays[0])
    step = max(1, PIECE_BYTES * rows // arrays[0].nbytes)

    def fill(start: int) -> None:
        stop = min(start + step, rows)
        for array, piece in zip(arrays, make(start, stop), strict=True):
            array[start:stop] = piece

    deque(helpers.map(fill, range(0, rows, step)), maxlen=0)
