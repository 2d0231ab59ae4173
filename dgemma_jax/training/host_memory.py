"""Keeping freed memory in the process, so that every step of a training run on a CPU finds its pages in place.

XLA asks for a program's temporaries anew at each call, hundreds of megabytes for a training step. glibc hands them back
to the system in between, and the system clears every page again: a third of a step's processor time for the demo model.
"""

from __future__ import annotations

import ctypes
import sys

_MALLOPT = {"M_TRIM_THRESHOLD": (-1, -1), "M_MMAP_MAX": (-4, 0), "M_ARENA_MAX": (-8, 1)}
"""The settings of malloc.h: number and value. Never trimmed, never mapped apart, one arena: only that one can grow."""


def keep_freed_memory() -> bool:
    """Tells glibc's allocator never to give memory back. True where that worked: Linux with glibc.

    Call it before JAX has run anything. The process then stays as large as it ever was.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all([mallopt(*setting) == 1 for setting in _MALLOPT.values()])
