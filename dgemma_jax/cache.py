"""The key/value cache, as a plain value: functions take one and return one.

Full layers keep every position. Sliding layers keep a ring of `sliding_window` slots: position p lies in slot
p mod slots, and the position a slot holds follows from the length, so no positions are stored.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from dgemma_jax.config import FULL, SLIDING, LayerType, TextConfig
from dgemma_jax.model.attention import KeyValue


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """Keys and values of each layer, [B, K, slots, C], and how many tokens of each row they hold."""

    layers: tuple[KeyValue, ...]
    length_B: jax.Array
    layer_types: tuple[LayerType, ...] = dataclasses.field(metadata={"static": True})

    @property
    def capacity(self) -> int:
        """Positions that fit: the slots of a full layer."""
        return self.slots(FULL)

    def slots(self, kind: LayerType) -> int:
        """Slots of the layers of one kind."""
        return self.layers[self.layer_types.index(kind)].key_BKSC.shape[2]


def empty(config: TextConfig, rows: int, capacity: int, dtype: jnp.dtype) -> Cache:
    """A cache with room for `capacity` positions that holds none."""

    def layer(kind: LayerType) -> KeyValue:
        slots = min(capacity, config.sliding_window) if kind == SLIDING else capacity
        shape = (rows, config.key_value_heads(kind), slots, config.head_size(kind))
        return KeyValue(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))

    layers = tuple(layer(kind) for kind in config.layer_types)
    return Cache(layers, jnp.zeros(rows, jnp.int32), config.layer_types)


def grow(cache: Cache, capacity: int, window: int) -> Cache:
    """The same content with room for `capacity` positions."""

    def widen(kind: LayerType, x_BKSC: jax.Array) -> jax.Array:
        # A ring shorter than the window has never wrapped: its slots are positions, so padding keeps them right.
        slots = min(capacity, window) if kind == SLIDING else capacity
        return jnp.pad(x_BKSC, ((0, 0), (0, 0), (0, slots - x_BKSC.shape[2]), (0, 0)))

    layers = tuple(
        KeyValue(*(widen(kind, x) for x in layer)) for kind, layer in zip(cache.layer_types, cache.layers, strict=True)
    )
    return dataclasses.replace(cache, layers=layers)


def key_positions(cache: Cache) -> dict[LayerType, jax.Array]:
    """The position that each slot holds, [B, slots]; -1 where it holds none."""

    def positions(kind: LayerType) -> jax.Array:
        slots = cache.slots(kind)
        last_B1 = cache.length_B[:, None] - 1
        position_BS = last_B1 - (last_B1 - jnp.arange(slots)[None]) % slots
        return jnp.where(position_BS >= 0, position_BS, -1)

    return {kind: positions(kind) for kind in sorted(set(cache.layer_types))}


def blank(cache: Cache, T: int) -> tuple[KeyValue, ...]:
    """Keys and values of `T` tokens that mean nothing, as `append` takes them."""

    def zeros(x_BKSC: jax.Array) -> jax.Array:
        B, K, _, C = x_BKSC.shape
        return jnp.zeros((B, K, T, C), x_BKSC.dtype)

    return jax.tree.map(zeros, cache.layers)


def append(cache: Cache, new: tuple[KeyValue, ...], count_B: jax.Array) -> Cache:
    """Writes the first `count_B` of the new tokens of each row behind what is there; the rest is padding.

    The caller makes sure that they fit. Of tokens more numerous than a ring's slots the last ones stay.
    """
    T = new[0].key_BKSC.shape[2]
    length_B = cache.length_B + count_B
    position_BT = cache.length_B[:, None] + jnp.arange(T)[None]
    rows_B1 = jnp.arange(len(count_B))[:, None]

    def write(old: KeyValue, new: KeyValue) -> KeyValue:
        slots = old.key_BKSC.shape[2]
        keep_BT = (position_BT < length_B[:, None]) & (position_BT >= length_B[:, None] - slots)
        slot_BT = jnp.where(keep_BT, position_BT % slots, slots)  # one past the end: dropped
        return KeyValue(*(into(o, n, slot_BT) for o, n in zip(old, new, strict=True)))

    def into(old_BKSC: jax.Array, new_BKTC: jax.Array, slot_BT: jax.Array) -> jax.Array:
        return old_BKSC.at[rows_B1, :, slot_BT].set(jnp.moveaxis(new_BKTC, 1, 2), mode="drop")

    layers = tuple(write(old, fresh) for old, fresh in zip(cache.layers, new, strict=True))
    return Cache(layers, length_B, cache.layer_types)
