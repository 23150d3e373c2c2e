"""What a face detector gives, what it promises, and which face of a frame is the one to work on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

_MIN_WIDTH = 50
_MIN_HEIGHT = 80
_MIN_ASPECT = 0.2
_MAX_ASPECT = 1.5
_MIN_SCORE = 0.5
_NEAR = 0.2
_ALIKE = 1.15


@dataclass(frozen=True)
class Face:
    """One face in one frame, in pixels of that frame.

    `box` is (left, top, right, bottom); `landmarks` (3, 2) float64 holds x and y of left brow centre, right
    brow centre and nose centre in whole pixels, left being the picture's left.
    """

    box: tuple[float, float, float, float]
    score: float
    landmarks: NDArray[np.float64]


class Detector(Protocol):
    """Finds the face to work on in single frames: equal frames, equal faces, in any thread and order."""

    @property
    def name(self) -> str:
        """The back end and model, for reports."""

    def detect(self, image: NDArray[np.uint8]) -> Face | None:
        """Return the face of a uint8 RGB frame (h, w, 3), or None. May be called by several threads at once."""

    def detect_near(self, image: NDArray[np.uint8], held: Face) -> Face | None:
        """Return the face of a frame that is where a frame shortly before showed `held`, as large; None for any other.

        Only its surroundings are looked at, so the face may lie elsewhere by what the back end's landmarks vary.
        """

    def close(self) -> None:
        """Let go of the models. No thread may be in `detect`."""


@runtime_checkable
class MultiFaceDetector(Detector, Protocol):
    """A detector that can be asked for all faces, so that one can be chosen among them."""

    def detect_all(self, image: NDArray[np.uint8]) -> list[Face]:
        """Return all usable faces of a frame, from the largest to the smallest; `detect` returns the first."""


def looks_at_parts(detector: Detector) -> bool:
    """Return whether a detector may be given an image that is converted only where it is sliced; it says so itself."""
    return bool(getattr(detector, "looks_at_parts", False))


def has_room_for_a_face(image: NDArray[np.uint8]) -> bool:
    """Return whether a frame (h, w, 3) is as large as the smallest usable face; the libraries choke on thinner ones."""
    height, width = image.shape[:2]
    return bool(height >= _MIN_HEIGHT and width >= _MIN_WIDTH)


def is_near(face: Face, held: Face) -> bool:
    """Return whether a face lies about where another one does: within a fifth of its size, as large within 15 %."""
    box, held_box = np.array(face.box), np.array(held.box)
    size, held_size = (max(b[2] - b[0], b[3] - b[1]) for b in (box, held_box))
    moved = np.abs(box[:2] + box[2:] - held_box[:2] - held_box[2:]).max() / 2
    return bool(moved < _NEAR * held_size and 1 / _ALIKE < size / held_size < _ALIKE)


def usable(candidates: Iterable[Face]) -> list[Face]:
    """Return the usable faces from the largest to the smallest, equals in their order.

    Dropped, as in the published code: narrower than 50 pixels or lower than 80, width / height above 1.5 or
    below 0.2, score below 0.5. Boxes count in whole pixels.
    """
    areas = [(face, _usable_area(face)) for face in candidates]
    return [face for face, area in sorted(areas, key=lambda pair: -pair[1]) if area > 0]


def choose(candidates: Iterable[Face]) -> Face | None:
    """Return the largest usable face, the first of equals, or None."""
    return next(iter(usable(candidates)), None)


def _usable_area(face: Face) -> int:
    left, top, right, bottom = (int(value) for value in face.box)
    width, height = right - left, bottom - top
    if width < _MIN_WIDTH or height < _MIN_HEIGHT or face.score < _MIN_SCORE:
        return 0
    return width * height if _MIN_ASPECT <= width / height <= _MAX_ASPECT else 0
