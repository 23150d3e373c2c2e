"""mediapipe's face mesh on aligned crops: where the lips are, and how far the mouth is open."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipstream.errors import ModelError
from lipstream.face.quiet import import_problem, native_logs_hidden

INNER_LIPS = (78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308, 324, 318, 402, 317, 14, 87, 178, 88, 95)
"""The mesh points on the inner edge of the lips, once round."""

_UPPER_LIP, _LOWER_LIP, _FOREHEAD, _CHIN = 13, 14, 10, 152
_LEFT_CORNER, _RIGHT_CORNER = 78, 308


class FaceMesh:
    """The 478 points of the face in a crop. Raises ModelError where mediapipe is missing. For one thread at a time."""

    def __init__(self) -> None:
        solutions = _import_solutions()
        self._met_a_face = False
        with native_logs_hidden():
            self._mesh: Any = solutions.face_mesh.FaceMesh(
                static_image_mode=True, refine_landmarks=True, min_detection_confidence=0.2
            )
            # The models are opened by threads of their own, which talk until the first picture is through.
            self._mesh.process(np.zeros((64, 64, 3), np.uint8))

    def points(self, crop: NDArray[np.uint8]) -> NDArray[np.float64] | None:
        """Points (478, 2) in pixels of a uint8 RGB crop (h, w, 3), or None where no face is found."""
        # The first mesh that is found is announced with a warning.
        with contextlib.nullcontext() if self._met_a_face else native_logs_hidden():
            found = self._mesh.process(np.ascontiguousarray(crop)).multi_face_landmarks
        if not found:
            return None
        self._met_a_face = True
        height, width = crop.shape[:2]
        return np.array([[p.x * width, p.y * height] for p in found[0].landmark], np.float64)

    def close(self) -> None:
        """Let go of the model."""
        self._mesh.close()


def mouth_opening(points: NDArray[np.floating[Any]]) -> float:
    """Distance of the inner lips over the height of the face (forehead to chin)."""
    return float(np.linalg.norm(points[_UPPER_LIP] - points[_LOWER_LIP])) / face_height(points)


def mouth_width(points: NDArray[np.floating[Any]]) -> float:
    """Distance of the inner corners over the height of the face."""
    return float(np.linalg.norm(points[_LEFT_CORNER] - points[_RIGHT_CORNER])) / face_height(points)


def face_height(points: NDArray[np.floating[Any]]) -> float:
    """From the forehead to the chin, in the units of the mesh points (478, 2)."""
    return float(np.linalg.norm(points[_FOREHEAD] - points[_CHIN]))


def _import_solutions() -> Any:
    try:
        import mediapipe
    except ImportError as error:
        raise ModelError("mouths cannot be measured", fix=import_problem("mediapipe", error).fix) from error
    if not hasattr(mediapipe, "solutions"):
        raise ModelError(
            f"mouths cannot be measured: mediapipe {mediapipe.__version__} holds no face models; "
            'pip install "lipstream[measure]"'
        )
    return mediapipe.solutions
