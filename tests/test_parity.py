"""Equality with the published implementation, on numbers recorded from it. See goldens/README.md."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lipstream.face.align import crop_face, face_size
from lipstream.face.composite import paste_face, resize_face
from lipstream.face.track import FaceTrack


@pytest.fixture(scope="module")
def alignment(goldens: Path) -> dict[str, np.ndarray]:
    with np.load(goldens / "align_io.npz") as recorded:
        return dict(recorded)


def test_face_size(alignment):
    assert face_size(int(alignment["resolution"])) == tuple(alignment["face_size"])


def test_affine_matrices_with_smoothing(alignment):
    track = FaceTrack(int(alignment["resolution"]))
    for index, landmarks in enumerate(alignment["landmarks"]):
        affine_matrix = track.update(index, False, landmarks)
        np.testing.assert_allclose(affine_matrix, alignment["matrices"][index], rtol=0, atol=1e-2)


def test_crops(alignment):
    resolution = int(alignment["resolution"])
    for frame, affine_matrix, golden in zip(
        alignment["frames"], alignment["matrices"], alignment["crops"], strict=True
    ):
        crop = crop_face(frame, affine_matrix, resolution).permute(1, 2, 0).numpy()
        difference = np.abs(crop.astype(int) - golden)
        assert difference.mean() <= 0.5
        assert (difference <= 3).mean() >= 0.999


def test_restored_frames(alignment):
    resolution = int(alignment["resolution"])
    for frame, crop, affine_matrix, golden in zip(
        alignment["frames"], alignment["crops"], alignment["matrices"], alignment["restored"], strict=True
    ):
        face = torch.from_numpy(crop).permute(2, 0, 1) / 127.5 - 1
        face[:, resolution // 2 :] *= -0.7
        restored = paste_face(frame, resize_face(face), affine_matrix)
        mean_square = np.square(restored.astype(float) - golden).mean()
        assert 10 * np.log10(255**2 / max(mean_square, 1e-9)) >= 48
