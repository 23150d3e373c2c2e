"""Avatar: a prepared clip, one file that holds all of it that does not depend on the speech.

It is a safetensors file, so that opening it runs no code of its own; crops, latents and pictures are mapped, and only
the rows that are looked at are read. The video and the table of faces lie in it as the files that they are.
"""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lipstream.engines.cache import weights_sha256
from lipstream.errors import InputError, ModelError, SettingsError
from lipstream.live.avatar_info import AvatarInfo
from lipstream.pipeline.analyse import FaceTable
from lipstream.pipeline.records import Components
from lipstream.settings import SyncSettings

_REMAKE = "make it again with `lipstream prepare VIDEO -o AVATAR`"
_CHUNK_BYTES = 1 << 20


class Avatar:
    """A prepared clip, open for reading; see `LipSync.prepare_avatar`. Any number of runs and threads may share it."""

    def __init__(self, path: Path, info: AvatarInfo, file: Any) -> None:
        self.path, self.info = path, info
        self._file = file
        self._columns = {name: file.get_slice(name) for name in ("crops", "latents", "idle")}
        self.affine_matrices: NDArray[np.float32] = file.get_tensor("affine_matrices").numpy()
        self.weights: NDArray[np.float64] = file.get_tensor("weights").numpy()
        self._idle_corners: list[list[int]] = file.get_tensor("idle_corners").tolist()
        shapes = {name: column.get_shape() for name, column in self._columns.items()}
        n, side = info.n_frames, info.resolution
        if any(shape[0] != n for shape in shapes.values()) or shapes["crops"][1:] != [3, side, side]:
            raise ValueError(f"tensors of shapes {shapes}")
        if self.affine_matrices.shape != (n, 2, 3) or self.weights.shape != (n,) or len(self._idle_corners) != n:
            raise ValueError("tables of other lengths")

    @classmethod
    def open(cls, path: str | Path) -> Avatar:
        """Open a prepared clip. Raises InputError for a file that is missing, damaged or of another version."""
        path = Path(path)
        if not path.is_file():
            raise InputError("no such file", file=path, fix="make it with `lipstream prepare VIDEO -o AVATAR`")
        try:
            file: Any = safe_open(path, framework="pt")
            return cls(path, AvatarInfo.of(file.metadata()), file)
        except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
            reason = " ".join(str(error).split())
            message = f"not a prepared clip that this version of lipstream can read ({reason})"
            raise InputError(message, file=path, fix=_REMAKE) from error

    @property
    def width(self) -> int:
        """Width of its pictures, px."""
        return self.info.width

    @property
    def height(self) -> int:
        """Height of its pictures, px."""
        return self.info.height

    @property
    def frame_rate(self) -> Fraction:
        """Frames a second."""
        return self.info.frame_rate

    @property
    def n_frames(self) -> int:
        """Number of frames of the clip."""
        return self.info.n_frames

    @property
    def model(self) -> str:
        """Name of the model that it was prepared for."""
        return self.info.model

    def has_face(self, frame: int) -> bool:
        """Return whether a frame has a face to generate."""
        return not bool(np.isnan(self.affine_matrices[frame]).any())

    def crop(self, source_index: int) -> Tensor:
        """Return the crop of a frame: (3, res, res) uint8 RGB."""
        return self._row("crops", source_index)

    def latents(self, source_index: int) -> Tensor:
        """Return the latents of a frame's masked and whole crop: (2 C, h, w)."""
        return self._row("latents", source_index)

    def idle(self, frame: int) -> tuple[int, int, NDArray[np.uint8]]:
        """Return what a frame shows while nobody speaks: left and top, px, and the RGB (h, w, 3) from there on."""
        left, top = self._idle_corners[frame]
        return left, top, self._row("idle", frame).numpy()

    def check(self, components: Components) -> None:
        """Raise ModelError for a model that it was not prepared for."""
        if weights_of(components) != self.info.weights_sha256:
            name = components.model.config.name
            other = "other weights of this name" if name == self.model else f"the model {self.model}"
            fix = f"use --model {self.model}, or make it again with --model {name}"
            raise ModelError(f"it was prepared for {other}, not for {name}", file=self.path, fix=fix)
        if (vae := vae_name(components)) != self.info.vae:
            raise ModelError(
                f"it was prepared with the autoencoder {self.info.vae}, not {vae}",
                file=self.path,
                fix=f"use --vae {self.info.vae}, or make it again",
            )

    def settings(self, given: SyncSettings) -> SyncSettings:
        """Return settings with what was decided when this was prepared. Raises SettingsError where they differ."""
        defaults = SyncSettings()
        for name, value in self.info.decided.items():
            chosen = getattr(given, name)
            if chosen not in (getattr(defaults, name), value):
                raise SettingsError(
                    f"{name} = {chosen}: the clip was prepared with {value}",
                    file=self.path,
                    fix="leave it out, or prepare the video again",
                    setting=name,
                )
        return replace(given, **self.info.decided)

    @contextlib.contextmanager
    def files(self) -> Iterator[tuple[Path, FaceTable]]:
        """Yield the video, as a file that is there meanwhile, and its table of faces. Raises InputError."""
        with tempfile.TemporaryDirectory(prefix="lipstream-") as folder:
            video, faces = Path(folder, f"video{self.info.video_suffix}"), Path(folder, "table.faces")
            if self._extract("video", video) != self.info.video_sha256:
                raise InputError(
                    "damaged: the video in it is not the one that was prepared", file=self.path, fix=_REMAKE
                )
            self._extract("faces", faces)
            yield video, FaceTable.load(faces)

    def _extract(self, name: str, path: Path) -> str:
        """Write the bytes of a tensor to a file, and return their SHA-256."""
        column, digest = self._file.get_slice(name), hashlib.sha256()
        with path.open("wb") as file:
            for start in range(0, column.get_shape()[0], _CHUNK_BYTES):
                content = column[start : start + _CHUNK_BYTES].numpy().tobytes()
                digest.update(content)
                file.write(content)
        return digest.hexdigest()

    def _row(self, name: str, row: int) -> Tensor:
        rows: Tensor = self._columns[name][row : row + 1]
        return rows[0]


def weights_of(components: Components) -> str:
    """Return the digest of the weights of the model that is loaded."""
    source, exported = components.model.source, components.model.config.exported
    if source is not None:
        return weights_sha256(source)
    return "" if exported is None else exported.source_sha256


def vae_name(components: Components) -> str:
    """Return the name of the autoencoder, see RuntimeSettings."""
    source = components.model.source
    return "own" if source is None else source.vae_name
