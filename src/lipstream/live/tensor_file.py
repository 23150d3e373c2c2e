"""Write a safetensors file row by row: what it holds is never in memory whole."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from lipstream.media.output_file import create_hidden, forget, link_target, output_errors, rename_to_new

ITEM_BYTES = {"F64": 8, "I64": 8, "F32": 4, "F16": 2, "BF16": 2, "U8": 1}
"""Sizes of the kinds of number, by safetensors' names."""


@dataclass(frozen=True)
class Column:
    """One tensor of a file: the kind of its numbers, and its shape, of which the first length counts rows."""

    kind: str
    shape: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        """Size of a row."""
        return ITEM_BYTES[self.kind] * math.prod(self.shape[1:])

    @property
    def n_bytes(self) -> int:
        """Size of all rows."""
        return self.row_bytes * self.shape[0]


class TensorFile:
    """A file that appears whole, or not at all, when the context is left; rows that are not written are zero."""

    def __init__(
        self, path: Path, columns: Mapping[str, Column], metadata: Mapping[str, str], *, overwrite: bool
    ) -> None:
        """Begin the file. Raises OutputError."""
        self._path, self._overwrite, self._columns = path, overwrite, columns
        self._offsets: dict[str, int] = {}
        header: dict[str, object] = {"__metadata__": dict(metadata)}
        end = 0
        # The widest numbers first, so that all are aligned.
        for name, column in sorted(columns.items(), key=lambda item: -ITEM_BYTES[item[1].kind]):
            self._offsets[name] = end
            end += column.n_bytes
            offsets = [self._offsets[name], end]
            header[name] = {"dtype": column.kind, "shape": list(column.shape), "data_offsets": offsets}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        self._begin = 8 + len(text)
        self._hidden = create_hidden(path, link_target(path))
        with output_errors(path):
            self._file = self._hidden.open("r+b")
            self._file.write(len(text).to_bytes(8, "little") + text)
            self._file.truncate(self._begin + end)

    def write(self, name: str, row: int, content: bytes | memoryview) -> None:
        """Write rows of a tensor, from `row` on. Raises OutputError."""
        column = self._columns[name]
        start = row * column.row_bytes
        assert start + len(content) <= column.n_bytes
        with output_errors(self._path):
            self._file.seek(self._begin + self._offsets[name] + start)
            self._file.write(content)

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        target = link_target(self._path)
        try:
            with output_errors(self._path):
                self._file.close()
                if kind is None and self._overwrite:
                    self._hidden.replace(target)
                elif kind is None:
                    rename_to_new(self._hidden, target)
        finally:
            self._hidden.unlink(missing_ok=True)
            forget(self._hidden)
