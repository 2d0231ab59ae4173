"""Memory that training frees stays in the process."""

import subprocess
import sys

import pytest

SCRIPT = """
import ctypes, resource
from dgemma_jax.training.host_memory import keep_freed_memory
print(int(keep_freed_memory()))
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
def use():
    block = libc.malloc(ctypes.c_size_t(64 << 20))
    ctypes.memset(block, 1, 64 << 20)
    libc.free(block)
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator is asked")
def test_memory_that_was_freed_is_used_again_without_a_page_fault() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    kept, faults = map(int, done.stdout.split())
    assert kept
    assert faults < 100  # 16,384 pages
