"""mediapipe's attention mesh: the face mesh, its lips placed by a second network that looks at them alone.

Between the two networks lies a crop of the first one's features around the lips, here in numpy. The geometry is that of
mediapipe's operations Landmarks2TransformMatrix, TransformTensorBilinear and TransformLandmarks, version 2.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipstream.face.mediapipe.networks import LIPS, MESH_WITH_FEATURES, SIDE, Network

# Mesh points of the lips, in the second network's order: four rings of 20, from the picture's left corner along the
# lower edge to the right one, then along the upper edge; the outer edge, the inner one, and two between, which may
# coincide with it.
_OUTER = (61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 185, 40, 39, 37, 0, 267, 269, 270, 409)
_INNER = (78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308, 191, 80, 81, 82, 13, 312, 311, 310, 415)
_RING = (76, 77, 90, 180, 85, 16, 315, 404, 320, 307, 306, 184, 74, 73, 72, 11, 302, 303, 304, 408)
_INNER_RING = (62, 96, 89, 179, 86, 15, 316, 403, 319, 325, 292, 183, 42, 41, 38, 12, 268, 271, 272, 407)
_LIPS = [*_OUTER, *_INNER, *_RING, *_INNER_RING]
_LEFT_CORNER, _RIGHT_CORNER = 61, 291

_MARGIN = 1.5  # the crop is so many times the lips' size
_CROP = 16  # pixels of features
_UNIT = 64  # the second network's points are in 64ths of the crop


class AttentionMesh:
    """The two networks as one, for one thread at a time. Raises ModelError where LiteRT cannot be used."""

    def __init__(self) -> None:
        self._mesh, self._lips = Network(MESH_WITH_FEATURES), Network(LIPS)

    def run(self, picture: NDArray[Any]) -> list[NDArray[np.float32]]:
        """Return mesh (1, 1, 1404) and score (1, 1, 1) for an RGB picture (3, 192, 192), as the plain mesh does."""
        mesh, score, features = self._mesh.run(picture)
        points = mesh.reshape(-1, 3).copy()
        lips = points[_LIPS, :2].astype(np.float64)
        across = points[_RIGHT_CORNER, :2] - points[_LEFT_CORNER, :2]
        to_picture = _crop_to_picture(lips, math.atan2(across[1], across[0]))
        (found,) = self._lips.run(_cut_out(features, to_picture).transpose(2, 0, 1))
        points[_LIPS, :2] = _moved(found.astype(np.float64) / _UNIT, to_picture)
        return [points.reshape(mesh.shape), score]


def _crop_to_picture(lips: NDArray[np.float64], angle: float) -> NDArray[np.float64]:
    """Return the matrix (2, 3) from the unit square to the rectangle around the lips (n, 2), turned by `angle`."""
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    upright = lips @ turn
    low, high = upright.min(axis=0), upright.max(axis=0)
    matrix = turn * (_MARGIN * (high - low))
    return np.column_stack([matrix, turn @ (low + high) / 2 - matrix.sum(axis=1) / 2])


def _moved(points: NDArray[np.float64], matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    moved: NDArray[np.float64] = points @ matrix[:, :2].T + matrix[:, 2]
    return moved


def _cut_out(features: NDArray[np.float32], to_picture: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return features (16, 16, c) of the rectangle, bilinear, zero outside of `features` (n, n, c)."""
    last = len(features) - 1
    centres = (np.arange(_CROP) + 0.5) / _CROP
    x, y = np.moveaxis(_moved(np.stack(np.meshgrid(centres, centres), axis=-1), to_picture), -1, 0)
    x, y = (value * len(features) / SIDE - 0.5 for value in (x, y))
    left, top = (np.floor(value).astype(int) for value in (x, y))
    right_share, lower_share = (x - left)[..., None], (y - top)[..., None]

    def at(row: NDArray[np.int_], column: NDArray[np.int_]) -> NDArray[np.float32]:
        values: NDArray[np.float32] = features[row.clip(0, last), column.clip(0, last)]
        return values

    upper = at(top, left) * (1 - right_share) + at(top, left + 1) * right_share
    lower = at(top + 1, left) * (1 - right_share) + at(top + 1, left + 1) * right_share
    inside = (x >= 0) & (x <= last) & (y >= 0) & (y <= last)
    crop: NDArray[np.float32] = ((upper * (1 - lower_share) + lower * lower_share) * inside[..., None]).astype(
        np.float32
    )
    return crop
