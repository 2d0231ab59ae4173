"""Arrays in host memory that are read from files once, and that a CPU device takes as they are.

XLA's CPU device uses an array where it lies if it begins at a multiple of 64 bytes; of any other it makes a copy, and
for a moment the tensor is there twice.
"""

from __future__ import annotations

import contextlib
import io
import math
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np

ALIGNMENT = 64
PIECE_BYTES = 2**22
"""What is read at a time where numbers are converted: no second array of the tensor's size is made."""


def empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array to fill, aligned as devices want it."""
    memory = np.empty(math.prod(shape) * dtype.itemsize + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : len(memory) - ALIGNMENT + start].view(dtype).reshape(shape)


def read_into(out: np.ndarray, path: Path, offset: int, stored: np.dtype) -> bool:
    """Fills an array, which has no gaps, with the numbers that lie in a file from `offset` on.

    Returns False for a file that ends before.
    """
    flat = out.reshape(-1)
    size = max(1, flat.size if stored == out.dtype else PIECE_BYTES // stored.itemsize)
    with path.open("rb", buffering=0) as file:
        file.seek(offset)
        for start in range(0, flat.size, size):
            part = flat[start : start + size]
            numbers = part if stored == out.dtype else np.empty(part.size, stored)
            if not _fill(file, numbers.view(np.uint8)):
                return False
            if numbers is not part:
                part[:] = numbers
    return True


def _fill(file: io.RawIOBase, content: np.ndarray) -> bool:
    """Reads as many bytes as the array has, in as many calls as the system wants."""
    done = 0
    while done < content.size:
        count = file.readinto(content[done:].data)
        if not count:
            return False
        done += count
    return True


class Room:
    """So many bytes of host memory for what is read and not yet on its device; whoever wants more of it waits.

    What is larger than all of it waits until it is alone.
    """

    def __init__(self, size: int) -> None:
        self._size, self._taken = size, 0
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def take(self, size: int) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._taken or self._taken + size <= self._size)
            self._taken += size
        try:
            yield
        finally:
            with self._changed:
                self._taken -= size
                self._changed.notify_all()
