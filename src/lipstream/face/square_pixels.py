"""Faces where pixels are not square (HDV, DV, DVDs): they are searched for in the picture as it is shown."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipstream.face.detector import Detector, Face, MultiFaceDetector
from lipstream.media.images import resized


def on_square_pixels(detector: Detector, aspect: float) -> Detector:
    """Return a detector for frames whose pixels are `aspect` times as wide as high; its faces are in frame pixels."""
    if aspect == 1:
        return detector
    if isinstance(detector, MultiFaceDetector):
        return _AllInSquarePixels(detector, aspect)
    return _SquarePixels(detector, aspect)


def landmarks_as_shown(landmarks: NDArray[np.float64], aspect: float) -> NDArray[np.float64]:
    """Return landmarks (n, 2) of a frame in the square pixels that it is shown with."""
    return landmarks if aspect == 1 else landmarks * (aspect, 1)


def matrix_of_frame(matrix: NDArray[np.float32], aspect: float) -> NDArray[np.float32]:
    """Return the affine matrix (2, 3) of a frame's own pixels, given that of the picture as it is shown."""
    return matrix if aspect == 1 else matrix * np.array([aspect, 1, 1], np.float32)


@dataclass(frozen=True)
class _SquarePixels:
    """The detector `inner`, given frames as they are shown."""

    inner: Detector
    aspect: float

    @property
    def name(self) -> str:
        return self.inner.name

    def detect(self, image: NDArray[np.uint8]) -> Face | None:
        return _stretched(self.inner.detect(self._shown(image)), 1 / self.aspect)

    def detect_near(self, image: NDArray[np.uint8], held: Face) -> Face | None:
        held_as_shown: Any = _stretched(held, self.aspect)
        return _stretched(self.inner.detect_near(self._shown(image), held_as_shown), 1 / self.aspect)

    def close(self) -> None:
        self.inner.close()

    def _shown(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        height, width = image.shape[:2]
        return resized(image, height, max(1, round(width * self.aspect)))


@dataclass(frozen=True)
class _AllInSquarePixels(_SquarePixels):
    inner: MultiFaceDetector

    def detect_all(self, image: NDArray[np.uint8]) -> list[Face]:
        found = self.inner.detect_all(self._shown(image))
        return [face for face in (_stretched(one, 1 / self.aspect) for one in found) if face is not None]


def _stretched(face: Face | None, factor: float) -> Face | None:
    """Return a face with its coordinates from left to right multiplied."""
    if face is None:
        return None
    left, top, right, bottom = face.box
    return replace(face, box=(left * factor, top, right * factor, bottom), landmarks=face.landmarks * (factor, 1))
