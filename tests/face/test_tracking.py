"""The order-dependent part of the face stage: smoothing, its reset, and the memory for looped videos."""

from __future__ import annotations

import numpy as np
import pytest

from lipstream.face.align import similarity_transform, template
from lipstream.face.tracking import FaceTrack

LANDMARKS = [np.array([[100.0 + k, 80.0], [150.0, 82.0 + k], [126.0, 110.0 + 3 * k]]) for k in range(6)]


def plain(landmarks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return similarity_transform(landmarks, template(256))


def test_the_residual_is_smoothed_from_frame_to_frame():
    track = FaceTrack(256)
    smoothed = None
    for index, landmarks in enumerate(LANDMARKS):
        expected, residual = plain(landmarks)
        smoothed = residual if smoothed is None else 0.2 * smoothed + 0.8 * residual
        expected[:, 2] += smoothed
        np.testing.assert_allclose(track.update(index, False, landmarks), expected, atol=1e-5)


def test_smoothing_starts_again_after_a_frame_without_a_face():
    track = FaceTrack(256)
    track.update(0, False, LANDMARKS[0])
    assert track.update(1, False, None) is None
    expected, residual = plain(LANDMARKS[5])
    expected[:, 2] += residual
    np.testing.assert_allclose(track.update(2, False, LANDMARKS[5]), expected, atol=1e-5)


def test_a_repeated_frame_gets_the_matrix_of_its_first_pass():
    track = FaceTrack(256)
    landmarks_of = [LANDMARKS[0], None, LANDMARKS[2], LANDMARKS[3]]
    first = [track.update(index, False, landmarks) for index, landmarks in enumerate(landmarks_of)]
    for index in [3, 2, 1, 0, 0, 1, 2, 3]:
        again = track.update(index, True, LANDMARKS[5])
        if first[index] is None:
            assert again is None
        else:
            np.testing.assert_array_equal(again, first[index])
            assert again.dtype == np.float32


def test_repeats_do_not_disturb_the_smoothing():
    with_repeat, without = FaceTrack(256), FaceTrack(256)
    for track in (with_repeat, without):
        track.update(0, False, LANDMARKS[0])
    with_repeat.update(0, True, None)
    np.testing.assert_array_equal(with_repeat.update(1, False, LANDMARKS[1]), without.update(1, False, LANDMARKS[1]))


def test_a_caller_may_change_the_matrix_it_got():
    track = FaceTrack(256)
    matrix = track.update(0, False, LANDMARKS[0])
    expected = matrix.copy()
    matrix[:] = 0
    np.testing.assert_array_equal(track.update(0, True, None), expected)


def test_frames_out_of_order_are_refused():
    track = FaceTrack(256)
    track.update(0, False, LANDMARKS[0])
    with pytest.raises(ValueError, match="frame 2 came where frame 1 was expected"):
        track.update(2, False, LANDMARKS[1])
    with pytest.raises(ValueError, match="repeated before"):
        track.update(1, True, LANDMARKS[1])
