"""What a folder of exported networks says of its files, and whether they are still those."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from lipstream.errors import ModelError
from lipstream.models.digest import sha256

GRAPH_VERSION = 2
"""Rises when the graphs change: a lipstream reads graphs of its own version alone."""

ONNX_FOLDER = "onnx"
ExportedPrecision = Literal["fp32", "fp16", "int8"]


@dataclass(frozen=True)
class ExportedFile:
    """Size and SHA-256 (hex) of a file as it was exported."""

    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class ExportedNetworks:
    """The `exported` object of a lipstream.json.

    precision: of weights and computation; int8 is of the layers that were quantized, with fp32 for the rest.
    source_sha256: of the weights that were exported. files: by name, below the folder `onnx`.
    """

    graph_version: int
    lipstream: str
    precision: ExportedPrecision
    source_sha256: str
    files: Mapping[str, ExportedFile]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ExportedNetworks:
        """Read the object. Raises TypeError and ValueError."""
        files = {str(name): ExportedFile(**file) for name, file in values["files"].items()}
        networks = cls(**{**values, "files": files})
        if networks.precision not in get_args(ExportedPrecision):
            raise ValueError(networks.precision)
        return networks

    def digest(self) -> str:
        """Return a digest of what all files hold."""
        return hashlib.sha256("\n".join(file.sha256 for file in self.files.values()).encode()).hexdigest()

    def check(self, folder: Path) -> None:
        """Refuse files of another version of lipstream, and missing or replaced ones by their size. Raises ModelError.

        folder: the model's.
        """
        if self.graph_version != GRAPH_VERSION:
            raise ModelError(
                f"its graphs have version {self.graph_version}, written by lipstream {self.lipstream}; this one reads"
                f" {GRAPH_VERSION}",
                file=folder,
                fix="export the model again",
            )
        for name, file in self.files.items():
            path = folder / ONNX_FOLDER / name
            if not path.is_file():
                raise ModelError("missing", file=path, fix="export the model again")
            if path.stat().st_size != file.size_bytes:
                raise _replaced(f"{path.stat().st_size} bytes, {file.size_bytes} were exported", path)

    def verify(self, folder: Path) -> list[Path]:
        """Compare every file with its SHA-256, and return their paths. Raises ModelError."""
        self.check(folder)
        paths = [folder / ONNX_FOLDER / name for name in self.files]
        for path in paths:
            if sha256(path) != self.files[path.name].sha256:
                raise _replaced("its SHA-256 is not that of the exported file", path)
        return paths


def _replaced(what: str, path: Path) -> ModelError:
    return ModelError(f"damaged or replaced: {what}", file=path, fix="export the model again")
