"""The C library's memory allocator on Linux, set to keep what is freed."""

from __future__ import annotations

import ctypes
import sys

# Of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
_MOST_BYTES = 2**31 - 1
# Beyond this, older versions of glibc refuse a threshold and return 0.
_ACCEPTED_BYTES = 32 * 2**20


def keep_freed_memory() -> None:
    """Let memory that is freed stay with the process, in one pool for all threads; call it before other threads start.

    Without it every tensor of some megabytes goes back to the system, and its pages are requested and zeroed again,
    which takes up to a tenth of a run's CPU time. One pool per thread, glibc's default, would keep more memory than is
    ever used at once. Does nothing where the C library is not glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return
    for parameter, value in ((_ARENA_MAX, 1), (_MMAP_THRESHOLD, _MOST_BYTES), (_TRIM_THRESHOLD, _MOST_BYTES)):
        if not mallopt(parameter, value):
            mallopt(parameter, min(value, _ACCEPTED_BYTES))
