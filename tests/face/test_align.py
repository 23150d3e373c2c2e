"""The alignment as geometry: what the similarity undoes, what a crop shows, what it leaves alone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from helpers.face import picture, turned
from lipstream.face.align import crop_face, crop_faces, face_size, similarity_transform, template
from lipstream.imaging import lanczos4_resize
from lipstream.media.picture import RgbPicture
from lipstream.runtime.device_stream import DeviceStream

NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def whole_frame_crop(image: np.ndarray, matrix: np.ndarray, resolution: int) -> np.ndarray:
    """The same crop in plain float64 loops over the whole frame, up to the resizing."""
    width, height = face_size(resolution)
    inverse = np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))
    padded = np.full((image.shape[0] + 2, image.shape[1] + 2, 3), 127.0)
    padded[1:-1, 1:-1] = image
    y, x = np.mgrid[:height, :width]
    x, y = np.einsum("ij,jhw->ihw", inverse, np.stack([x, y, np.ones_like(x)]))[:2]
    x = np.clip(x, -1, image.shape[1]) + 1
    y = np.clip(y, -1, image.shape[0]) + 1
    left = np.minimum(np.floor(x).astype(int), image.shape[1])
    top = np.minimum(np.floor(y).astype(int), image.shape[0])
    u, v = (x - left)[..., None], (y - top)[..., None]
    above = padded[top, left] * (1 - u) + padded[top, left + 1] * u
    below = padded[top + 1, left] * (1 - u) + padded[top + 1, left + 1] * u
    return above * (1 - v) + below * v


@pytest.mark.parametrize("resolution", [64, 256, 320, 512])
def test_similarity_undoes_a_turn_a_scale_and_a_shift(resolution):
    target = template(resolution)
    landmarks = turned(target, 0.4, 0.35, (300, 120))
    matrix, residual = similarity_transform(landmarks, target)
    np.testing.assert_allclose(landmarks @ matrix[:, :2].T + matrix[:, 2], target, atol=1e-2)
    np.testing.assert_allclose(matrix[:, :2], turned(np.eye(2), -0.4, 1 / 0.35, (0, 0)).T, atol=1e-4)
    # Relative to the landmarks' own axes the third point is off by the turn.
    spread = (target - target.mean(0)).std(ddof=1)
    expected = (target - target.mean(0))[2] / spread
    np.testing.assert_allclose(residual, expected - turned(expected, 0.4, 1, (0, 0)), atol=1e-5)


def test_similarity_never_mirrors():
    mirrored = template(256) * [-1, 1]
    matrix, _ = similarity_transform(mirrored, template(256))
    assert np.linalg.det(matrix[:, :2]) > 0


@pytest.mark.parametrize(
    ("centre", "scale", "angle"),
    [((120, 90), 0.41, 0.0), ((120, 90), 0.3, 2.5), ((4, 90), 0.4, -0.3), ((235, 175), 0.5, 0.7), ((120, -20), 0.4, 0)],
)
def test_crop_equals_sampling_the_whole_frame(centre, scale, angle):
    image = picture(180, 240)
    points = template(64)
    landmarks = turned(points - points.mean(0), angle, scale, centre)
    matrix, _ = similarity_transform(landmarks, points)
    face = torch.from_numpy(whole_frame_crop(image, matrix, 64) + 1e-3).to(torch.uint8).permute(2, 0, 1)
    expected = lanczos4_resize(face, (64, 64))
    difference = (crop_face(image, matrix, 64).int() - expected.int()).abs()
    # Truncation may fall on either side of a whole number.
    assert difference.max() <= 2
    assert (difference > 0).float().mean() < 0.02


@pytest.mark.parametrize("level", [0, 1, 99, 126, 254, 255])
def test_a_plain_frame_stays_plain(level):
    matrix, _ = similarity_transform(turned(template(64), 0.3, 0.37, (80, 40)), template(64))
    assert (crop_face(np.full((180, 240, 3), level, np.uint8), matrix, 64) == level).all()


@pytest.mark.parametrize("shift", [(-1000, 0), (5000, 40), (20, 3000), (0, -900)])
def test_a_face_outside_the_frame_is_grey(shift):
    matrix, _ = similarity_transform(template(64) + shift, template(64))
    assert (crop_face(picture(60, 80), matrix, 64) == 127).all()


def test_crop_takes_any_array_and_leaves_it_alone():
    image = picture(120, 160)
    before = image.copy()
    matrix, _ = similarity_transform(turned(template(64), 0.1, 0.5, (40, 20)), template(64))
    expected = crop_face(image, matrix, 64)
    np.testing.assert_array_equal(image, before)
    flipped_twice = np.ascontiguousarray(image[::-1])[::-1]
    image.flags.writeable = False
    for same in (image, flipped_twice, torch.from_numpy(before)):
        assert torch.equal(crop_face(same, matrix, 64), expected)


def test_the_number_of_threads_changes_nothing():
    image, points = picture(180, 240), template(64)
    matrices = [similarity_transform(turned(points, 0.1 * step, 0.5, (40, 20)), points)[0] for step in range(12)]
    alone = [crop_face(image, matrix, 64) for matrix in matrices]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda matrix: crop_face(image, matrix, 64), matrices))
    assert torch.equal(torch.stack(alone), torch.stack(together))


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (2, 2)])
def test_crop_of_tiny_frames(shape):
    matrix, _ = similarity_transform(turned(template(64), 0.1, 0.5, (-20, -20)), template(64))
    crop = crop_face(np.full((*shape, 3), 200, np.uint8), matrix, 64)
    assert crop.shape == (3, 64, 64)
    assert crop.min() >= 127 - 25  # the kernel overshoots beside an edge


def scattered() -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Frames and matrices of faces of all sizes: within a frame, across each border and beyond it."""
    points = template(64)
    centres = [(120, 90), (4, 90), (235, 175), (120, -20), (900, 90), (60, 150)]
    images = [picture(180, 240)[:, :: 1 - 2 * (index % 2)] for index in range(len(centres))]
    turns = [turned(points - points.mean(0), 0.3 * i, 0.2 + 0.1 * i, centre) for i, centre in enumerate(centres)]
    return images, [similarity_transform(landmarks, points)[0] for landmarks in turns]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NEEDS_CUDA])])
def test_many_frames_at_once_are_as_each_alone(device):
    images, matrices = scattered()
    stream = DeviceStream(torch.device(device))
    with stream.running():
        crops = crop_faces([RgbPicture(image) for image in images], matrices, 64, stream)
    assert crops.device.type == device
    alone = torch.stack([crop_face(image, matrix, 64) for image, matrix in zip(images, matrices, strict=True)])
    difference = (crops.cpu().int() - alone.int()).abs()
    # Coordinates are rounded otherwise in a rectangle of another size, and truncation may fall on either side.
    assert difference.max() <= 2
    assert (difference > 0).float().mean() < 0.002
    assert alone.float().std(dim=(1, 2, 3)).gt(1).sum() == len(images) - 1


def test_lanczos_keeps_what_needs_no_resampling():
    image = torch.from_numpy(picture(40, 50)).permute(2, 0, 1)
    assert torch.equal(lanczos4_resize(image, (40, 50)), image)
    assert (lanczos4_resize(torch.full((3, 9, 11), 201, dtype=torch.uint8), (64, 30)) == 201).all()


def test_lanczos_follows_a_slope_and_overshoots_at_an_edge():
    slope = torch.arange(0, 200, 2, dtype=torch.uint8).expand(4, 100)
    wide = lanczos4_resize(slope, (4, 250))
    position = (torch.arange(250) + 0.5) / 2.5 - 0.5
    inner = slice(15, 235)
    assert (wide[0, inner] - 2 * position[inner]).abs().max() <= 1
    edge = torch.tensor([50] * 8 + [150] * 8, dtype=torch.uint8).expand(4, 16)
    wide = lanczos4_resize(edge, (4, 64))
    assert wide.min() < 50
    assert wide.max() > 150
