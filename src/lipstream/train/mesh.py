"""mediapipe's face mesh on aligned crops: how far the mouth is open, and the points that the stills are warped by."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipstream.errors import ModelError

_UPPER_LIP, _LOWER_LIP, _FOREHEAD, _CHIN = 13, 14, 10, 152


class FaceMesh:
    """The 478 points of the face in a crop. Raises ModelError where mediapipe is not installed."""

    def __init__(self) -> None:
        try:
            import mediapipe
        except ImportError as error:
            raise ModelError('training: mediapipe is not installed; pip install "lipstream[train]"') from error
        self._mesh: Any = mediapipe.solutions.face_mesh.FaceMesh(
            static_image_mode=True, refine_landmarks=True, min_detection_confidence=0.2
        )

    def points(self, crop: NDArray[np.uint8]) -> NDArray[np.float64] | None:
        """Points (478, 2) in pixels of a uint8 RGB crop (h, w, 3), or None where no face is found."""
        found = self._mesh.process(np.ascontiguousarray(crop)).multi_face_landmarks
        if not found:
            return None
        height, width = crop.shape[:2]
        return np.array([[p.x * width, p.y * height] for p in found[0].landmark], np.float64)

    def close(self) -> None:
        """Let go of the model."""
        self._mesh.close()


def mouth_opening(points: NDArray[np.floating[Any]]) -> float:
    """Distance of the inner lips over the height of the face (forehead to chin)."""
    gap = np.linalg.norm(points[_UPPER_LIP] - points[_LOWER_LIP])
    return float(gap / np.linalg.norm(points[_FOREHEAD] - points[_CHIN]))
