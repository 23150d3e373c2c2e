"""The C library's memory allocator on Linux, set to keep what is freed."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
_MOST_BYTES = 2**31 - 1
# Beyond this, older versions of glibc refuse a threshold and return 0.
_ACCEPTED_BYTES = 32 * 2**20

# While a model is loaded, what is larger goes back when it is freed.
_LOADING_BYTES = 2**16

_keeps = False


def keep_freed_memory() -> None:
    """Let memory that is freed stay with the process, in one pool for all threads; call it before other threads start.

    Without it every tensor of some megabytes goes back to the system, and its pages are requested and zeroed again,
    which takes up to a tenth of a run's CPU time. One pool per thread, glibc's default, would keep more memory than is
    ever used at once. Does nothing where the C library is not glibc.
    """
    global _keeps
    _keeps = True
    _set_malloc(_ARENA_MAX, 1)
    _set_malloc(_MMAP_THRESHOLD, _MOST_BYTES)
    _set_malloc(_TRIM_THRESHOLD, _MOST_BYTES)


@contextmanager
def freed_memory_given_back(beyond_bytes: int = _LOADING_BYTES) -> Iterator[None]:
    """Let memory of more than `beyond_bytes` that is freed inside go back to the system.

    It does so though `keep_freed_memory` was called. For loading a model: the space of tensors that were converted is
    not used again, a quarter of the weights' size.
    """
    if not _keeps:
        yield
        return
    _set_malloc(_MMAP_THRESHOLD, beyond_bytes)
    try:
        yield
    finally:
        _set_malloc(_MMAP_THRESHOLD, _MOST_BYTES)


def give_back_freed_memory() -> None:
    """Return what has been freed to the system, from between what is still in use too; takes some 10 ms.

    Kept memory splits up where sizes change: after windows of all lengths a live session held 200 MB it did not use.
    """
    trim = _c_function("malloc_trim")
    if trim is not None:
        trim(0)


def _set_malloc(parameter: int, value: int) -> None:
    mallopt = _c_function("mallopt")
    if mallopt is not None and not mallopt(parameter, value):
        mallopt(parameter, min(value, _ACCEPTED_BYTES))


def _c_function(name: str) -> Any:
    """Return a function of the C library on Linux, None where there is none."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
