"""The C library's allocator, in a process of its own: what is set there cannot be undone."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

# Every second of 400 buffers is freed, so that nothing at the end of the heap is free.
_FREE_BETWEEN = """
import numpy as np
from lipstream.runtime.allocator import give_back_freed_memory, keep_freed_memory

def resident_mb():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 2**20

keep_freed_memory()
held = [np.ones(2**16) for _ in range(400)]
full = resident_mb()
del held[::2]
kept = resident_mb()
give_back_freed_memory()
print(full, kept, resident_mb(), sum(float(one.sum()) for one in held))
"""
_IS_GLIBC = sys.platform == "linux" and hasattr(ctypes.CDLL(None), "malloc_trim")


@pytest.mark.skipif(not _IS_GLIBC, reason="nothing is set")
def test_what_is_kept_between_is_given_back_on_demand() -> None:
    ran = subprocess.run([sys.executable, "-c", _FREE_BETWEEN], capture_output=True, text=True, check=True)
    full, kept, after, total = map(float, ran.stdout.split())
    assert kept > full - 10, "keep_freed_memory kept nothing"
    assert after < kept - 80  # of the 100 that were freed
    assert total == 200 * 2**16
