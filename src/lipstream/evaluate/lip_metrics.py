"""Mouth metrics of two videos of the same face: landmark distance and correlation of the opening."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from lipstream.evaluate.mouth import INNER_LIPS, FaceMesh, face_height, mouth_opening
from lipstream.face.align import crop_face, face_size
from lipstream.face.detector import Detector
from lipstream.face.tracking import FaceTrack

Image = NDArray[np.uint8]

_CROP_PX = 256
# A crop is the face rectangle stretched to a square; this undoes the stretch for mesh points.
_PROPORTIONS = np.array(face_size(_CROP_PX)) / max(face_size(_CROP_PX))


class MouthFinder:
    """Finds face mesh points in crops that are cut with a given affine matrix.

    `close` closes the mesh, not the detector, which belongs to the caller. Raises ModelError if LiteRT cannot be used.
    """

    def __init__(self, detector: Detector) -> None:
        self.detector = detector
        self._mesh = FaceMesh()

    def points(self, image: Image, affine_matrix: NDArray[np.float32]) -> NDArray[np.float64] | None:
        """Return the mesh points (468, 2) of the face that `affine_matrix` crops, in its proportions, or None."""
        crop = crop_face(image, affine_matrix, _CROP_PX)
        points = self._mesh.points(crop.permute(1, 2, 0).numpy())
        return None if points is None else points * _PROPORTIONS

    def close(self) -> None:
        """Free the mesh's networks."""
        self._mesh.close()


def inner_lips_distance(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Return the mean distance of the inner lips' points of two meshes (468, 2), in heights of the first one's face."""
    inner = list(INNER_LIPS)
    return float(np.linalg.norm(one[inner] - other[inner], axis=1).mean()) / face_height(one)


class Mouths:
    """Accumulates the mouth metrics of a video against a reference, frame by frame, in order.

    frames_without: frames in which one of the two shows no face; the metrics leave them out.
    """

    def __init__(self, finder: MouthFinder) -> None:
        self._finder = finder
        self._track = FaceTrack(_CROP_PX)
        self._frames = 0
        self._distance = 0.0
        self._openings = Correlation()
        self.frames_without = 0

    def add(self, reference: Image, picture: Image, before: Image) -> None:
        """Add one frame of both (h, w, 3). before: the source frame, in which the face is detected for both."""
        face = self._finder.detector.detect(before)
        affine_matrix = self._track.update(self._frames, False, None if face is None else face.landmarks)
        self._frames += 1
        if affine_matrix is None:
            self.frames_without += 1
            return
        one, other = (self._finder.points(image, affine_matrix) for image in (reference, picture))
        if one is None or other is None:
            self.frames_without += 1
            return
        self._distance += inner_lips_distance(one, other)
        self._openings.add(mouth_opening(one), mouth_opening(other))

    def landmark_distance(self) -> float | None:
        """Return the mean distance of the inner lips' points, in heights of the reference's face, or None."""
        return None if self._openings.count == 0 else self._distance / self._openings.count

    def opening_correlation(self) -> float | None:
        """Return Pearson's correlation of the two mouth openings over time; None if one is constant."""
        return self._openings.value()


class Correlation:
    """Online Pearson correlation (Welford's algorithm)."""

    def __init__(self) -> None:
        self.count = 0
        self._mean_x = self._mean_y = 0.0
        self._xx = self._yy = self._xy = 0.0

    def add(self, x: float, y: float) -> None:
        """Add one pair."""
        self.count += 1
        before_x, before_y = x - self._mean_x, y - self._mean_y
        self._mean_x += before_x / self.count
        self._mean_y += before_y / self.count
        self._xx += before_x * (x - self._mean_x)
        self._yy += before_y * (y - self._mean_y)
        self._xy += before_x * (y - self._mean_y)

    def value(self) -> float | None:
        """Return the correlation, -1 to 1; None if either variable is constant or there are fewer than two pairs."""
        spread = math.sqrt(self._xx * self._yy)
        return None if spread == 0 else self._xy / spread
