"""A face chosen by the caller among those that a detector finds in a frame."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lipstream.errors import SettingsError
from lipstream.face.detector import Detector, Face, MultiFaceDetector, is_near, looks_at_parts

Box = tuple[float, float, float, float]
FaceChoice = Callable[[list[Face]], Face | None] | Box
"""Chooses among the faces of a frame, from the largest to the smallest; a box: the one that it covers most of."""


def choosing(detector: Detector, face: FaceChoice | None) -> Detector:
    """Return the detector, with the choice of a face made by `face`; None leaves it to the detector.

    A callback is called in several threads, with frames in any order. Raises SettingsError where the detector finds
    one face only.
    """
    if face is None:
        return detector
    if not isinstance(detector, MultiFaceDetector):
        raise SettingsError(
            f"face: the detector {detector.name} finds one face in a frame, there is nothing to choose from",
            fix="give it a method detect_all, or leave out `face`",
            setting="face",
        )
    return _Choosing(detector, face if callable(face) else _covered(face))


def _covered(box: Box) -> Callable[[list[Face]], Face | None]:
    """Return a callback that chooses the face of which the most area lies in `box`, in px; None if none touches it."""

    def area_in_box(face: Face) -> float:
        low = np.maximum(face.box[:2], box[:2])
        high = np.minimum(face.box[2:], box[2:])
        return float(np.prod(np.maximum(high - low, 0)))

    def choose(faces: list[Face]) -> Face | None:
        best = max(faces, key=area_in_box, default=None)
        return best if best is not None and area_in_box(best) > 0 else None

    return choose


@dataclass(frozen=True)
class _Choosing:
    """The detector whose faces `choose` chooses from."""

    inner: MultiFaceDetector
    choose: Callable[[list[Face]], Face | None]

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def looks_at_parts(self) -> bool:
        return looks_at_parts(self.inner)

    def detect(self, image: NDArray[np.uint8]) -> Face | None:
        return self.choose(self.inner.detect_all(image))

    def detect_near(self, image: NDArray[np.uint8], held: Face) -> Face | None:
        found = self.inner.detect_near(image, held)
        # It may have searched the whole frame, and found a larger face elsewhere.
        return found if found is not None and is_near(found, held) else None

    def close(self) -> None:
        self.inner.close()
