"""Caches of earlier prompts, for later ones that begin the same. Least recently used leaves first.

What a cache holds depends in its last bits on where the passes over the prompt were cut. So there are two ways:

    exact   only what was cut as the new prompt is cut is reused: whole chunks from its start, or all of it. The
            answer is the same, bit for bit, as without. Short prompts that were read together were rounded as a batch,
            so they are not kept.
    any     the longest common prefix is reused, answers of earlier turns included. The answer is as good, but
            rounding may make it another one.

An entry that holds more than the common prefix serves only while its rings have not wrapped: a ring that has
wrapped has overwritten what the shorter prefix needs.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import Literal, NamedTuple

import numpy as np

from dgemma_jax import cache as kv
from dgemma_jax.config import SLIDING

Reuse = Literal["exact", "any", "off"]


@dataclasses.dataclass(frozen=True, eq=False)
class Entry:
    """A cache of one row that is never written again; `keys_T` and `ends` as in `Plan`.

    pictured: whether its prompt had images, which are read by a program of their own.
    """

    cache: kv.Cache
    keys_T: np.ndarray
    ends: tuple[int, ...]
    pictured: bool = False

    @functools.cached_property
    def bytes(self) -> int:
        """What it costs."""
        return sum(x.nbytes for layer in self.cache.layers for x in layer)

    @property
    def whole(self) -> bool:
        """Whether no ring has wrapped, so that any shorter prefix is in there too."""
        return SLIDING not in self.cache.layer_types or len(self.keys_T) <= self.cache.slots(SLIDING)


class Found(NamedTuple):
    """The entry that serves best, and how many of its tokens count."""

    entry: Entry
    length: int


class PrefixStore:
    """Entries within a number of bytes."""

    def __init__(self, most_bytes: int, reuse: Reuse = "exact") -> None:
        self.reuse = reuse
        self.most_bytes = 0 if reuse == "off" else most_bytes
        self._entries: list[Entry] = []  # the least recently used first
        self.bytes = 0
        """What all entries cost."""

    def has_room_for(self, size: int) -> bool:
        """Whether an entry of so many bytes would be kept: worth making."""
        return size <= self.most_bytes

    def put(self, entry: Entry) -> None:
        """Keeps an entry, in place of those used least recently and of one for the same tokens."""
        if not self.has_room_for(entry.bytes):
            return
        for old in [old for old in self._entries if _same(old, entry)]:
            self._drop(old)
        self._entries.append(entry)
        self.bytes += entry.bytes
        while self.bytes > self.most_bytes:
            self._drop(self._entries[0])

    def find(self, keys_T: np.ndarray, ends: tuple[int, ...], pictured: bool = False) -> Found | None:
        """The longest start of a prompt that is there, and marks it as used."""
        alike = [entry for entry in self._entries if self.reuse == "any" or entry.pictured == pictured]
        found = [Found(entry, self._usable(entry, keys_T, ends)) for entry in alike]
        best = max(found, key=lambda one: one.length, default=None)
        if best is None or best.length == 0:
            return None
        self._entries.remove(best.entry)
        self._entries.append(best.entry)
        return best

    def _usable(self, entry: Entry, keys_T: np.ndarray, ends: tuple[int, ...]) -> int:
        common = common_prefix(entry.keys_T, keys_T)
        if self.reuse == "exact":
            agreed = itertools.takewhile(lambda pair: pair[0] == pair[1] <= common, zip(ends, entry.ends, strict=False))
            length = max((end for end, _ in agreed), default=0)
        else:
            length = _outside_images(keys_T, common)
        return length if length == len(entry.keys_T) or entry.whole else 0

    def _drop(self, entry: Entry) -> None:
        self._entries.remove(entry)
        self.bytes -= entry.bytes


def common_prefix(a_T: np.ndarray, b_T: np.ndarray) -> int:
    """How many keys are the same from the start."""
    shorter = min(len(a_T), len(b_T))
    differ = np.flatnonzero(a_T[:shorter] != b_T[:shorter])
    return int(differ[0]) if len(differ) else shorter


def _outside_images(keys_T: np.ndarray, length: int) -> int:
    """The longest prefix within `length` that does not end inside an image."""
    while 0 < length < len(keys_T) and keys_T[length - 1] < 0 and keys_T[length] < 0:
        length -= 1
    return length


def _same(a: Entry, b: Entry) -> bool:
    return (a.ends, a.pictured) == (b.ends, b.pictured) and np.array_equal(a.keys_T, b.keys_T)
