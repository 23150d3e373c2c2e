"""Faces in anamorphic pictures."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from lipstream.face.align import similarity_transform, template
from lipstream.face.detector import Face
from lipstream.face.square_pixels import landmarks_as_shown, matrix_of_frame, on_square_pixels

LANDMARKS = np.array([[40.0, 50.0], [90.0, 54.0], [64.0, 90.0]])


class Recording:
    """A detector that finds a face at the same place of whatever it is shown."""

    name = "recording"

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self.held: Face | None = None

    def detect(self, image: NDArray[np.uint8]) -> Face | None:
        self.shapes.append(image.shape)
        return Face((20.0, 30.0, 120.0, 130.0), 0.9, LANDMARKS)

    def detect_near(self, image: NDArray[np.uint8], held: Face) -> Face | None:
        self.held = held
        return self.detect(image)

    def close(self) -> None:
        pass


@pytest.mark.parametrize("aspect", [4 / 3, 0.5])
def test_a_face_is_searched_for_in_the_picture_as_shown(aspect: float) -> None:
    inner = Recording()
    detector = on_square_pixels(inner, aspect)
    face = detector.detect(np.zeros((160, 120, 3), np.uint8))
    assert face is not None and inner.shapes == [(160, round(120 * aspect), 3)]
    assert face.box == pytest.approx((20 / aspect, 30, 120 / aspect, 130))
    assert np.allclose(face.landmarks, LANDMARKS / (aspect, 1))
    detector.detect_near(np.zeros((160, 120, 3), np.uint8), face)
    assert inner.held is not None and inner.held.box == pytest.approx((20, 30, 120, 130))
    assert on_square_pixels(inner, 1) is inner


@pytest.mark.parametrize("aspect", [4 / 3, 0.5])
def test_the_crop_of_a_squeezed_picture_is_that_of_the_picture_as_shown(aspect: float) -> None:
    target = template(128)
    shown, _ = similarity_transform(LANDMARKS, target)
    squeezed = LANDMARKS / (aspect, 1)
    fitted, _ = similarity_transform(landmarks_as_shown(squeezed, aspect), target)
    matrix = matrix_of_frame(fitted, aspect)
    corners = np.array([[0, 0, 1], [100, 7, 1], [3, 90, 1]], float)
    assert np.allclose(corners / (aspect, 1, 1) @ matrix.T, corners @ shown.T, atol=1e-3)
