"""Pasting back: on a rectangle as on the whole frame, and nothing else touched."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from helpers.face import picture, turned
from lipstream.face.align import face_size, similarity_transform, template
from lipstream.face.composite import paste_face, paste_faces, resize_face
from lipstream.imaging import erode, gaussian_blur
from lipstream.media.picture import RgbPicture
from lipstream.runtime.device_stream import DeviceStream

NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

RESOLUTION = 64

# Where the landmarks' centre lies in a frame of 180 x 240, the scale of the face and its turn.
PLACES = {
    "inside": ((120, 100), 0.8, 0.0),
    "turned": ((120, 90), 0.7, 2.2),
    "over the left border": ((6, 90), 0.9, 0.3),
    "over the lower right corner": ((230, 170), 0.9, -0.6),
    "over the upper border": ((120, 4), 1.0, 1.2),
    "larger than the frame": ((110, 90), 4.0, 0.2),
    "a few pixels": ((120, 90), 0.08, 0.0),
    "a sliver": ((-21, 90), 0.8, 0.0),
    "outside": ((-300, 90), 0.8, 0.0),
}


def matrix_at(centre, scale, angle) -> np.ndarray:
    points = template(RESOLUTION)
    return similarity_transform(turned(points - points.mean(0), angle, scale, centre), points)[0]


def face() -> torch.Tensor:
    width, height = face_size(RESOLUTION)
    return torch.from_numpy(picture(height, width)).permute(2, 0, 1) / 127.5 - 1


def warp(image: torch.Tensor, matrix: np.ndarray, height: int, width: int, fill: float) -> torch.Tensor:
    y, x = torch.meshgrid(torch.arange(height).double(), torch.arange(width).double(), indexing="ij")
    x, y = torch.einsum("ij,jhw->ihw", torch.from_numpy(matrix).double(), torch.stack([x, y, torch.ones_like(x)]))
    size = torch.tensor([image.shape[2] - 1, image.shape[1] - 1])
    grid = (torch.stack([x, y], -1) / size * 2 - 1)[None]
    sampled = F.grid_sample(image[None].double(), grid, align_corners=True)
    covered = F.grid_sample(torch.ones_like(image[None]).double(), grid, align_corners=True)
    return (sampled + (1 - covered) * fill)[0]


def whole_frame_paste(image: np.ndarray, face: torch.Tensor, matrix: np.ndarray) -> np.ndarray:
    """The published recipe step by step on the whole frame, in float64."""
    height, width = image.shape[:2]
    generated = (warp(face, matrix, height, width, 127) / 2 + 0.5).clamp(0, 1) * 255
    mask = warp(torch.ones_like(face[:1]), matrix, height, width, 0)
    inner = -F.max_pool2d(-F.pad(mask, (1, 0, 1, 0), value=1.0), 2, 1)
    edge = int(float(inner.sum()) ** 0.5) // 20
    before, after = (edge, edge - 1) if edge else (1, 1)
    shrunk = F.pad(inner, (before, after, before, after), value=torch.inf)
    soft = -F.max_pool2d(-shrunk, before + after + 1, 1)
    if edge:
        sigma = 0.3 * ((2 * edge + 1 - 1) * 0.5 - 1) + 0.8
        taps = torch.exp(-(torch.arange(-edge, edge + 1).double() ** 2) / (2 * sigma**2))
        kernel = torch.outer(taps, taps) / taps.sum() ** 2
        soft = F.conv2d(F.pad(soft[None], (edge,) * 4, mode="reflect"), kernel[None, None])[0]
    original = torch.from_numpy(image).permute(2, 0, 1).double()
    blended = soft * (inner * generated) + (1 - soft) * original
    return blended.permute(1, 2, 0).numpy()


@pytest.mark.parametrize("place", PLACES)
def test_equals_the_whole_frame(place):
    image = picture(180, 240)
    matrix = matrix_at(*PLACES[place])
    expected = whole_frame_paste(image, face(), matrix)
    restored = paste_face(image, face(), matrix)
    # Truncation may fall on either side of a whole number, and nothing else may differ.
    assert (restored <= expected + 1e-2).all()
    assert (restored > expected - 1 - 1e-2).all()


@pytest.mark.parametrize("shape", [(180, 12), (9, 240)])
def test_frames_narrower_than_the_face(shape):
    image = picture(*shape)
    matrix = matrix_at((shape[1] / 2, shape[0] / 2), 0.8, 0.1)
    expected = whole_frame_paste(image, face(), matrix)
    restored = paste_face(image, face(), matrix)
    assert np.abs(restored - np.floor(expected + 1e-6)).max() <= 1


def test_paints_inside_and_leaves_the_rest_and_the_input_alone():
    image = picture(180, 240)
    before = image.copy()
    matrix = matrix_at((120, 100), 0.4, 0.0)
    restored = paste_face(image, face(), matrix)
    np.testing.assert_array_equal(image, before)
    assert restored.dtype == np.uint8
    assert np.abs(restored[95:105, 115:125].astype(int) - image[95:105, 115:125]).mean() > 5
    corners = np.array([[0, 0], [52, 0], [0, 70], [52, 70]])
    inverse = np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))[:2]
    low, high = (f(corners @ inverse[:, :2].T + inverse[:, 2], axis=0) for f in (np.min, np.max))
    outside = np.ones(image.shape[:2], bool)
    outside[int(low[1]) - 1 : int(high[1]) + 2, int(low[0]) - 1 : int(high[0]) + 2] = False
    np.testing.assert_array_equal(restored[outside], image[outside])


@pytest.mark.parametrize("place", PLACES)
def test_in_place_is_the_same_on_the_frame_itself(place):
    image = picture(180, 240)
    matrix = matrix_at(*PLACES[place])
    expected = paste_face(image, face(), matrix)
    assert paste_face(image, face(), matrix, in_place=True) is image
    np.testing.assert_array_equal(image, expected)


def test_the_number_of_threads_changes_nothing():
    image = picture(180, 240)
    matrices = [matrix_at((60 + 10 * step, 90), 0.8, 0.1 * step) for step in range(12)]
    alone = [paste_face(image, face(), matrix) for matrix in matrices]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda matrix: paste_face(image, face(), matrix), matrices))
    np.testing.assert_array_equal(alone, together)


@pytest.mark.parametrize("shape", [(1, 1), (1, 400), (400, 1)])
def test_tiny_frames(shape):
    restored = paste_face(np.full((*shape, 3), 9, np.uint8), face(), matrix_at((0, 0), 0.8, 0.0))
    assert restored.shape == (*shape, 3)


def test_read_only_and_flipped_frames():
    image = picture(180, 240)
    matrix = matrix_at((120, 100), 0.8, 0.0)
    expected = paste_face(image, face(), matrix)
    flipped_twice = np.ascontiguousarray(image[::-1, ::-1])[::-1, ::-1]
    image.flags.writeable = False
    np.testing.assert_array_equal(paste_face(image, face(), matrix), expected)
    np.testing.assert_array_equal(paste_face(flipped_twice, face(), matrix), expected)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NEEDS_CUDA])])
@pytest.mark.parametrize("n_channels", [3, 4])
def test_many_frames_at_once_are_as_each_alone(device, n_channels):
    matrices = [matrix_at(*place) for place in PLACES.values()]
    images = [picture(180, 240)[:, :: 1 - 2 * (index % 2)].copy() for index in range(len(matrices))]
    faces = torch.stack([face().roll(7 * index, 1) for index in range(len(matrices))])
    if n_channels == 4:
        faces = torch.cat([faces, faces[:, :1].abs().clamp(0, 1)], 1).repeat_interleave(2, 2).repeat_interleave(2, 3)
    alone = [paste_face(*each) for each in zip(images, faces, matrices, strict=True)]
    before, stream = [image.copy() for image in images], DeviceStream(torch.device(device))
    with stream.running():
        paste_faces([RgbPicture(image) for image in images], faces.to(device), matrices, stream)
    difference = np.abs(np.subtract(images, alone, dtype=int))
    # Coordinates are rounded otherwise in a rectangle of another size, and truncation may fall on either side.
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.001
    changed = [bool((image != old).any()) for image, old in zip(images, before, strict=True)]
    assert changed == [name not in ("a sliver", "outside") for name in PLACES]


def test_resize_takes_one_crop_or_many_to_the_face_size():
    crops = torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(0)) * 2 - 1
    faces = resize_face(crops)
    width, height = face_size(128)
    assert faces.shape == (2, 3, height, width)
    torch.testing.assert_close(resize_face(crops[1]), faces[1])
    torch.testing.assert_close(
        resize_face(torch.full((3, 64, 64), 0.25, dtype=torch.float16)).mean(), torch.tensor(0.25)
    )


@pytest.mark.parametrize(("before", "after"), [(1, 0), (3, 2), (8, 7), (1, 1), (30, 29)])
def test_erosion_is_the_window_minimum(before, after):
    mask = torch.rand(23, 31, generator=torch.Generator().manual_seed(3))
    padded = F.pad(mask, (before, after, before, after), value=torch.inf)
    expected = -F.max_pool2d(-padded[None], before + after + 1, 1)[0]
    assert torch.equal(erode(mask, before, after), expected)


def test_blur_mirrors_at_the_border_however_short_the_axis():
    mask = torch.rand(20, 3, generator=torch.Generator().manual_seed(4))
    twice_mirrored = F.pad(F.pad(mask[None], (2, 2, 6, 6), mode="reflect"), (4, 4, 0, 0), mode="reflect")[0]
    taps = torch.exp(-(torch.arange(-6.0, 7.0) ** 2) / (2 * 2.0**2))
    kernel = torch.outer(taps, taps) / taps.sum() ** 2
    expected = F.conv2d(twice_mirrored[None, None], kernel[None, None])[0, 0]
    torch.testing.assert_close(gaussian_blur(mask, 6, 2.0), expected)
