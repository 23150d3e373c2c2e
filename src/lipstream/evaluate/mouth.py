"""The face mesh on aligned crops: where the lips are, and how far the mouth is open."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipstream.face.mediapipe.boxes import Place
from lipstream.face.mediapipe.detector import mesh_at
from lipstream.face.mediapipe.lips import AttentionMesh
from lipstream.face.mediapipe.networks import Pool

INNER_LIPS = (78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308, 324, 318, 402, 317, 14, 87, 178, 88, 95)
"""The mesh points on the inner edge of the lips, in order around it."""

_UPPER_LIP, _LOWER_LIP, _FOREHEAD, _CHIN = 13, 14, 10, 152
_LEFT_CORNER, _RIGHT_CORNER = 78, 308

# Where the mesh of an aligned face lies in the crop, in its widths and heights: the mean of three speakers, which all
# of their frames are within a tenth of.
_X, _Y, _SIDE = 0.48, 0.45, 0.9


class FaceMesh:
    """Finds the 468 points of the face in an aligned crop. Every crop is looked at by itself, in any thread.

    Raises ModelError where LiteRT cannot be used.
    """

    def __init__(self) -> None:
        self._meshes = Pool(AttentionMesh)

    def points(self, crop: NDArray[np.uint8]) -> NDArray[np.float64] | None:
        """Return the points (468, 2) in pixels of a uint8 RGB crop (h, w, 3), or None where no face is found.

        The crop is what `align.crop_face` returns: a face rectangle stretched to a square, not a face somewhere in it.
        """
        height, width = crop.shape[:2]
        place = Place(_X * width, _Y * height, _SIDE * max(width, height), 0.0, 1.0)
        with self._meshes.borrowed() as mesh:
            found = mesh_at(mesh, crop, place)
        return None if found is None else found.points

    def close(self) -> None:
        """Free the networks. No thread may be in `points`."""
        self._meshes.close()


def mouth_opening(points: NDArray[np.floating[Any]]) -> float:
    """Return the distance of the inner lips over the height of the face (forehead to chin)."""
    return float(np.linalg.norm(points[_UPPER_LIP] - points[_LOWER_LIP])) / face_height(points)


def mouth_width(points: NDArray[np.floating[Any]]) -> float:
    """Return the distance of the inner corners over the height of the face."""
    return float(np.linalg.norm(points[_LEFT_CORNER] - points[_RIGHT_CORNER])) / face_height(points)


def face_height(points: NDArray[np.floating[Any]]) -> float:
    """Return the distance from forehead to chin, in the units of the mesh points (468, 2)."""
    return float(np.linalg.norm(points[_FOREHEAD] - points[_CHIN]))
