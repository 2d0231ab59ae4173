"""What lies where on many devices: meshes, and the one table from logical axes to mesh axes.

    mesh axis   what it divides                                        what it costs
    data        canvases (rows of a batch)                             nothing, but at the end of a loop
    expert      experts; the vocabulary                                a sum over devices in each layer
    model       the same, and attention heads and dense MLPs           three sums in each layer

Tokens are whole on every device of `expert` and `model`: each adds what its part of the weights makes of them.

    make_mesh("data=2,expert=4", config)   -> a mesh, checked against the model and the devices
    spread(model, mesh)                    -> the module, told of its mesh: its passes then run on the parts
    parameter_sharding, cache_sharding     -> where the arrays of the model and of its caches belong

A parameter names its logical axes where it is declared (`model.parameter`). Nothing else knows device counts.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import jax
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dgemma_jax.config import TextConfig

if TYPE_CHECKING:  # caches are made of what attention makes, whose products ask where things lie
    from dgemma_jax.cache import Cache

AXES = ("data", "expert", "model")
TABLE: dict[str, tuple[str, ...]] = {
    "rows": ("data",),
    "experts": ("expert", "model"),
    "vocabulary": ("expert", "model"),
    "heads": ("model",),
    "kv_heads": ("model",),
    "mlp": ("model",),
}
"""Logical axes and the mesh axes that divide them; any other logical axis is whole on every device."""
_SHOWN = 6

T = TypeVar("T")


# ---------------------------------------------------------------- meshes
def make_mesh(
    wanted: str | Mesh | None, config: TextConfig, devices: Sequence[jax.Device] | None = None
) -> Mesh | None:
    """The mesh for a model; None for one device.

    Args:
        wanted: as "expert=8" or "data=2,expert=4", in any order, over the first devices; or a jax Mesh with axes of
            these names; or None: every accelerator present, of CPU devices one.
        devices: those present (default: `jax.devices()`, which in a group of processes are those of all).

    Raises:
        ValueError: a mesh that cannot be read, or that these devices or this model do not allow. Says what would do.
    """
    present = list(jax.devices() if devices is None else devices)
    if isinstance(wanted, Mesh):
        return _from_mesh(wanted, config)
    sizes = default_sizes(config, present) if wanted is None else parse(wanted)
    text = show(sizes)
    count = math.prod(sizes.values())
    if count > len(present):
        raise ValueError(f"mesh {text} needs {count} devices, found {len(present)}; {_advice(config, len(present))}")
    if jax.process_count() > 1 and count != len(present):
        raise ValueError(
            f"mesh {text} has {count} devices, but a group of processes uses all of its {len(present)}; "
            f"{_advice(config, len(present))}"
        )
    _check(sizes, config, len(present))
    if count == 1:
        return None
    # Auto, said explicitly: newer JAX makes explicit axes where nothing is said.
    return jax.make_mesh(
        tuple(sizes[axis] for axis in AXES), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=present[:count]
    )


def parse(text: str) -> dict[str, int]:
    """The size of every axis, 1 where the text names none. Raises ValueError."""
    sizes = dict.fromkeys(AXES, 1)
    named = []
    for part in text.split(","):
        axis, _, size = (piece.strip() for piece in part.partition("="))
        if axis not in AXES or not size.isdecimal() or int(size) < 1:
            raise ValueError(
                f'mesh must be axes of {", ".join(AXES)} with their sizes, as "data=2,expert=4"; found {text!r}'
            )
        if axis in named:
            raise ValueError(f"mesh {text!r} gives {axis} twice")
        named.append(axis)
        sizes[axis] = int(size)
    return sizes


def show(sizes: dict[str, int]) -> str:
    """As `parse` reads it; axes of one device are left out."""
    return ",".join(f"{axis}={size}" for axis, size in sizes.items() if size > 1) or "expert=1"


def describe(mesh: Mesh | None) -> str:
    """A mesh in words, for logs."""
    return "one device" if mesh is None else f"{show(dict(mesh.shape))} over {mesh.size} devices"


def default_sizes(config: TextConfig, devices: Sequence[jax.Device]) -> dict[str, int]:
    """All accelerators: as many as divide the experts over `expert`, the rest over `data`.

    Virtual CPU devices share one memory and one processor: there the default is one.
    """
    count = 1 if devices[0].platform == "cpu" and jax.process_count() == 1 else len(devices)
    expert = math.gcd(count, config.num_experts)
    return {"data": count // expert, "expert": expert, "model": 1}


def _from_mesh(mesh: Mesh, config: TextConfig) -> Mesh | None:
    unknown = set(mesh.axis_names) - set(AXES)
    if unknown:
        raise ValueError(f"mesh axes must be of {', '.join(AXES)}, found {', '.join(map(str, mesh.axis_names))}")
    sizes = {axis: dict(mesh.shape).get(axis, 1) for axis in AXES}
    _check(sizes, config, mesh.size)
    order = [mesh.axis_names.index(axis) for axis in AXES if axis in mesh.axis_names]
    devices = mesh.devices.transpose(order).reshape(tuple(sizes.values()))
    return None if mesh.size == 1 else Mesh(devices, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _check(sizes: dict[str, int], config: TextConfig, present: int) -> None:
    problems = _problems(sizes, config)
    if problems:
        raise ValueError(f"mesh {show(sizes)} does not fit: {'; '.join(problems)}; {_advice(config, present)}")


def _problems(sizes: dict[str, int], config: TextConfig) -> list[str]:
    wanted = {"expert": ("experts", config.num_experts), "model": ("attention heads", config.num_attention_heads)}
    return [
        f"{axis}={sizes[axis]} does not divide the model's {count} {what}"
        for axis, (what, count) in wanted.items()
        if count % sizes[axis]
    ]


def _advice(config: TextConfig, present: int) -> str:
    fitting = [
        {"data": present // (expert * model), "expert": expert, "model": model}
        for model, expert in itertools.product(range(1, present + 1), range(present, 0, -1))
        if present % (expert * model) == 0
    ]
    shown = [show(sizes) for sizes in fitting if not _problems(sizes, config)][:_SHOWN]
    return f"with this model and {present} devices these do: {' or '.join(shown)}"


# ---------------------------------------------------------------- shardings
def axes_of(logical: str, size: int, mesh: Mesh) -> tuple[str, ...]:
    """The mesh axes that divide a logical axis of this size: of those in the table the most devices that divide it."""
    named = [axis for axis in TABLE.get(logical, ()) if mesh.shape[axis] > 1]
    choices = [
        chosen for count in range(len(named), -1, -1) for chosen in itertools.combinations(named, count)
    ]  # a tie goes to the earlier
    fitting = [chosen for chosen in choices if size % math.prod(mesh.shape[axis] for axis in chosen) == 0]
    return max(fitting, key=lambda chosen: math.prod(mesh.shape[axis] for axis in chosen))


def spec(logical: Sequence[str], shape: Sequence[int], mesh: Mesh) -> PartitionSpec:
    """How an array whose axes have these names is cut."""
    return PartitionSpec(*(axes_of(name, size, mesh) or None for name, size in zip(logical, shape, strict=True)))


def parameter_sharding(parameter: nnx.Variable, mesh: Mesh | None) -> jax.sharding.Sharding:
    """Where a parameter lies, by the axes it was declared with."""
    if mesh is None:
        return jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return NamedSharding(mesh, spec(parameter.get_metadata("axes"), parameter.shape, mesh))


def cache_sharding(cache: Cache, mesh: Mesh) -> Any:
    """Where a cache lies: rows over `data`, heads over `model`, each where they divide. A cache of shardings."""

    def place(x: jax.Array, *logical: str) -> NamedSharding:
        return NamedSharding(mesh, spec(logical, x.shape, mesh))

    def of(x: jax.Array) -> NamedSharding:
        return place(x, "rows") if x.ndim == 1 else place(x, "rows", "kv_heads", "slots", "head")

    return jax.tree.map(of, cache)


def pin_cache(cache: Cache, mesh: Mesh | None) -> Cache:
    """A cache inside a program, kept where it belongs."""
    return cache if mesh is None else jax.lax.with_sharding_constraint(cache, cache_sharding(cache, mesh))


def pin(x: jax.Array, mesh: Mesh | None, *logical: str) -> jax.Array:
    """A value inside a program, cut by the table; without a mesh it is left alone."""
    return x if mesh is None else jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec(logical, x.shape, mesh)))


def pin_rows(tree: T, mesh: Mesh | None) -> T:
    """Values of rows inside a program, cut between the devices of `data` where that divides them."""
    if mesh is None:
        return tree
    places = jax.tree.map(lambda x: NamedSharding(mesh, spec(["rows"], x.shape[:1], mesh)), tree)
    return jax.lax.with_sharding_constraint(tree, places)


def by_rows(function: Callable[[jax.Array], T], mesh: Mesh | None) -> Callable[[jax.Array], T]:
    """A function of each row alone, for operations that the compiler would bring the rows together for."""

    def run(x: jax.Array) -> T:
        if mesh is None or not axes_of("rows", len(x), mesh):
            return function(x)
        rows = spec(["rows"], x.shape[:1], mesh)
        return jax.shard_map(function, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False)(x)

    return run


def everywhere(tree: T, mesh: Mesh | None) -> T:
    """Values inside a program, whole on every device: what the host will read."""
    if mesh is None:
        return tree
    return jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, PartitionSpec()))


def spread(model: T, mesh: Mesh | None) -> T:
    """Tells every part of a module that runs differently on parts of its weights. The module itself is returned."""
    for _, part in nnx.iter_graph(model):
        if isinstance(part, nnx.Module) and hasattr(type(part), "mesh"):
            part.mesh = mesh  # type: ignore[attr-defined]
    return model


def place(tree: T, mesh: Mesh | None) -> T:
    """Parameters and other values on the mesh: parameters as they declare, what lies on it already stays, the rest is
    whole on every device."""
    if mesh is None:
        return tree

    def put(x: Any) -> Any:
        # What an optimiser keeps of a parameter has its axes, but not always its shape.
        if isinstance(x, nnx.Variable) and len(x.get_metadata("axes")) == x.ndim:
            return x.replace(jax.device_put(x[...], parameter_sharding(x, mesh)))
        if isinstance(x, nnx.Variable):
            return x.replace(put(x[...]))
        there = isinstance(x.sharding, NamedSharding) and x.sharding.mesh == mesh
        return x if there else jax.device_put(x, NamedSharding(mesh, PartitionSpec()))

    return jax.tree.map(put, tree, is_leaf=lambda x: isinstance(x, nnx.Variable))


def by_row(tree: T, mesh: Mesh) -> T:
    """Arrays whose first axis are rows, cut between the devices of `data` where that divides them."""
    return jax.tree.map(lambda x: jax.device_put(x, NamedSharding(mesh, spec(["rows"], x.shape[:1], mesh))), tree)


def fetch(tree: T) -> T:
    """Values of programs as numpy arrays. In a group every process must call it, with its part of the same values."""

    def spread(x: Any) -> bool:
        return isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated)

    def whole(x: Any) -> np.ndarray:
        if spread(x):
            from jax.experimental import multihost_utils

            return np.asarray(multihost_utils.process_allgather(x, tiled=True))
        return np.asarray(x)

    for x in jax.tree.leaves(tree):  # all set out before the first is waited for
        if isinstance(x, jax.Array) and not spread(x):
            x.copy_to_host_async()
    return jax.tree.map(whole, tree)
