"""All of the face stage's state that depends on the order of frames: smoothing, and memory for loops."""

from __future__ import annotations

import math
from array import array
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipstream.face.align import similarity_transform, template

_KEEP = 0.2
_NO_FACE = [math.nan] * 6


class FaceTrack:
    """Turns the landmarks of successive frames into affine matrices. Call it in frame order, from one thread.

    The alignment's residual is smoothed over time (a fifth of the previous one is kept) and starts again after
    a frame without a face. Where a short video is looped, a repeated frame gets the matrix of its first pass,
    as published: 24 bytes are remembered for each source frame.
    """

    def __init__(self, resolution: int) -> None:
        self._template = template(resolution)
        self._residual: NDArray[np.float32] | None = None
        self._matrices = array("f")

    def begin(self) -> None:
        """Smooth no further than from the next frame on: a shot begins with it, or the face is elsewhere."""
        self._residual = None

    def update(
        self, source_index: int, is_repeat: bool, landmarks: NDArray[np.floating[Any]] | None
    ) -> NDArray[np.float32] | None:
        """Return the affine matrix (2, 3) float32 of one frame, or None where it shows no face.

        On the first pass source frames come as 0, 1, 2 ... with their landmarks (3, 2), None for no face. A
        repeat may name any frame of the first pass; its landmarks are ignored.
        """
        count = len(self._matrices) // 6
        if is_repeat:
            if not 0 <= source_index < count:
                raise ValueError(f"frame {source_index} is repeated before its first pass (of {count} frames)")
            return self._remembered(source_index)
        if source_index != count:
            raise ValueError(f"frame {source_index} came where frame {count} was expected")
        if landmarks is None:
            self._residual = None
            self._matrices.extend(_NO_FACE)
            return None
        matrix, residual = similarity_transform(landmarks, self._template)
        if self._residual is not None:
            residual = _KEEP * self._residual + (1 - _KEEP) * residual
        self._residual = residual
        matrix[:, 2] += residual
        self._matrices.extend(matrix.ravel().tolist())
        return matrix

    def _remembered(self, source_index: int) -> NDArray[np.float32] | None:
        values = self._matrices[6 * source_index : 6 * source_index + 6]
        if math.isnan(values[0]):
            return None
        return np.array(values, np.float32).reshape(2, 3)
