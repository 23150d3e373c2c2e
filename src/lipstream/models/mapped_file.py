"""A file of weights that is mapped into memory: its pages are given back as soon as they have been read."""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor


class MappedFile:
    """Where a file lies in this process's memory; nowhere where it is not mapped, or the system is not Linux.

    Pages of a mapping that were read count as the process's memory until it ends, although they only repeat the file:
    at full size 2.5 GB beside the weights themselves.
    """

    def __init__(self, path: Path) -> None:
        is_linux = sys.platform == "linux"
        self._ranges = list(_ranges(path)) if is_linux else []
        self._madvise = ctypes.CDLL(None, use_errno=True).madvise if self._ranges else None

    def give_back(self, tensor: Tensor) -> None:
        """Give back a tensor's pages if they are the file's, from which they are read again should they be used."""
        begin, end = tensor.data_ptr(), tensor.data_ptr() + tensor.numel() * tensor.itemsize
        if self._madvise is None or not any(first <= begin and end <= last for first, last in self._ranges):
            return
        begin = begin // mmap.PAGESIZE * mmap.PAGESIZE
        self._madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), ctypes.c_int(mmap.MADV_DONTNEED))


def _ranges(path: Path) -> Iterator[tuple[int, int]]:
    """Yield the first address of each private mapping of a file, and the one after its last."""
    name = str(path.resolve())
    with Path("/proc/self/maps").open(encoding="utf-8", errors="surrogateescape") as maps:
        for line in maps:
            fields = line.rstrip("\n").split(maxsplit=5)
            if len(fields) == 6 and fields[5] == name:
                first, _, last = fields[0].partition("-")
                yield int(first, 16), int(last, 16)
