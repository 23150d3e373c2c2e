"""The C library's memory allocator on Linux, told to keep what is freed."""

from __future__ import annotations

import ctypes
import sys

# Of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
_MOST_BYTES = 2**31 - 1


def keep_freed_memory() -> None:
    """Let memory that is freed stay with the process, in one pool for all threads; to be called before others start.

    Without it every tensor of some megabytes goes back to the system, and its pages are asked for and zeroed anew,
    which takes up to a tenth of a sync's CPU time. A pool a thread, glibc's own way, would keep more memory than is
    ever used at once. Does nothing where the C library is not glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return
    for parameter, value in ((_ARENA_MAX, 1), (_MMAP_THRESHOLD, _MOST_BYTES), (_TRIM_THRESHOLD, _MOST_BYTES)):
        mallopt(parameter, value)
