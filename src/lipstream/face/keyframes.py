"""Where in a frame the face is searched for: everywhere, or only where a frame shortly before showed it."""

from __future__ import annotations

from concurrent.futures import Future, wait
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lipstream.errors import ModelError
from lipstream.face.detector import Detector, Face, MultiFaceDetector

_THUMBNAIL_SIDE = 24
# The mean difference, in grey levels of 255, of thumbnails one second apart: in talking heads below 20.
_CUT = 30.0
# The search of a frame that takes longer than this is hung.
_WAIT_S = 120.0


@dataclass(frozen=True)
class _Found:
    faces: list[Face]
    thumbnail: NDArray[np.float32]


class Segment:
    """Consecutive frames: the first is searched whole, the others only where the first one's faces are.

    Those that show no face there, or another picture (a cut), are searched whole too. What is found in a frame
    depends on it and the segment's first frame alone, so frames may be searched in any number of threads.
    """

    def __init__(self, first: int, *, finds_all: bool = False) -> None:
        """first: the index of the first frame. finds_all: all faces, where the detector can, not the largest alone."""
        self._first, self._finds_all = first, finds_all
        self._found: Future[_Found] = Future()

    def find(self, detector: Detector, index: int, image: NDArray[np.uint8]) -> list[Face]:
        """Return the faces of frame `index`, uint8 RGB (h, w, 3). Frames other than the first wait for it.

        Calls may overlap, but that for the first frame must have begun before any other. Where that one fails, all
        of them raise its error; ModelError where it does not end.
        """
        if index == self._first:
            return self._find_first(detector, image)
        first = self._wait_for_first()
        faces: list[Face] = []
        if first.faces and np.abs(_thumbnail(image) - first.thumbnail).mean() < _CUT:
            near = (detector.detect_near(image, held) for held in first.faces)
            faces = [face for face in near if face is not None]
        return faces or faces_in(detector, image, finds_all=self._finds_all)

    def _wait_for_first(self) -> _Found:
        if not wait([self._found], _WAIT_S).done:
            raise ModelError(
                f"the face search of frame {self._first} has not ended within {_WAIT_S:.0f} s",
                fix="use --detect-every 1, or another --detector",
            )
        return self._found.result()

    def _find_first(self, detector: Detector, image: NDArray[np.uint8]) -> list[Face]:
        try:
            faces = faces_in(detector, image, finds_all=self._finds_all)
        except BaseException as error:
            self._found.set_exception(error)
            raise
        self._found.set_result(_Found(faces, _thumbnail(image)))
        return faces


def faces_in(detector: Detector, image: NDArray[np.uint8], *, finds_all: bool) -> list[Face]:
    """Return the faces of a whole frame, from the largest to the smallest, or that one alone."""
    if finds_all and isinstance(detector, MultiFaceDetector):
        return detector.detect_all(image)
    face = detector.detect(image)
    return [] if face is None else [face]


def _thumbnail(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return a sample of the pixels of a picture (h, w, 3), as float32 (about 24, about 24, 3)."""
    down, across = (max(length // _THUMBNAIL_SIDE, 1) for length in image.shape[:2])
    return image[down // 2 :: down, across // 2 :: across].astype(np.float32)
