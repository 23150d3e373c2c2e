"""Weights of several ONNX graphs in one file beside them, each different tensor once."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

WEIGHTS_NAME = "weights.bin"
# Graphs with more are stored beside their weights: protobuf takes no message of 2 GiB.
EMBEDDED_BYTES = 2 * 10**9
_SMALL_BYTES = 1024
_ALIGNMENT_BYTES = 64


class SharedWeights:
    """A context manager that writes the file `weights.bin` of a folder, if any graph is large enough for it."""

    def __init__(self, folder: Path, embedded_bytes: int = EMBEDDED_BYTES) -> None:
        """embedded_bytes: graphs whose weights take fewer keep them inside."""
        self._path, self._embedded_bytes = folder / WEIGHTS_NAME, embedded_bytes
        self._stream: BinaryIO | None = None
        self._offsets: dict[str, int] = {}

    def __enter__(self) -> SharedWeights:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._stream is not None:
            self._stream.close()

    def move(self, model: Any) -> None:
        """Write the weights of a graph (onnx_ir's Model) beside it, if they are large, and refer to them there."""
        import onnx_ir

        values = [value for value in model.graph.initializers.values() if value.const_value is not None]
        if sum(value.const_value.nbytes for value in values) < self._embedded_bytes:
            return
        for value in values:
            tensor = value.const_value
            if tensor.nbytes < _SMALL_BYTES:
                continue
            content = tensor.tobytes()
            value.const_value = onnx_ir.ExternalTensor(
                WEIGHTS_NAME,
                self._offset(content),
                len(content),
                tensor.dtype,
                shape=tensor.shape,
                name=value.name,
                base_dir=self._path.parent,
            )

    def _offset(self, content: bytes) -> int:
        """Return where `content` lies in the file, having written it if no other graph has."""
        digest = hashlib.sha256(content).hexdigest()
        if digest not in self._offsets:
            if self._stream is None:
                self._stream = self._path.open("wb")
            end = self._stream.tell()
            self._stream.write(b"\0" * (-end % _ALIGNMENT_BYTES))
            self._offsets[digest] = self._stream.tell()
            self._stream.write(content)
        return self._offsets[digest]
