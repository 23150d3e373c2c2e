"""The published alignment: three landmarks, a similarity transform, and the crop that the model sees.

Follows LatentSync's AlignRestore (itself from StyleSync), in float32 instead of float16. The geometry is a
handful of numbers and stays in numpy; the pixels are torch, those of several frames at once where a GPU wants it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lipstream.imaging import (
    affine_grid,
    bilinear_sample,
    equal_rectangles,
    invert_affine,
    lanczos4_resize,
    warped_bounds,
)
from lipstream.media.picture import Picture, Rectangle, RgbPicture
from lipstream.runtime.device_stream import DeviceStream

_GREY = 127.0
# More than float32 is off by, so that whole numbers are not truncated to the next lower ones.
_ROUNDING = 1e-4


def _ratio(resolution: int) -> float:
    return resolution / 256 * 2.8


def template(resolution: int) -> NDArray[np.float32]:
    """Left brow centre, right brow centre and nose centre in the face rectangle: x and y, (3, 2) float32."""
    points = np.array([[17.0, 20.0], [58.0, 20.0], [37.5, 40.0]]) * _ratio(resolution)
    return points.astype(np.float32)


def face_size(resolution: int) -> tuple[int, int]:
    """Width and height of the face rectangle that the crop is taken at, in pixels."""
    ratio = _ratio(resolution)
    return int(75 * ratio), int(100 * ratio)


def similarity_transform(
    landmarks: NDArray[np.floating[Any]], target: NDArray[np.floating[Any]]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The rotation, scale and shift that take three landmarks (3, 2) of a frame to `target` (3, 2).

    Returns the matrix (2, 3) and the residual of the third point (2,), target minus landmark in units of the
    points' standard deviation; the published smoothing adds that residual to the translation. The landmarks
    must not coincide.
    """
    source = np.asarray(landmarks, np.float32)
    target = np.asarray(target, np.float32)
    source_centre, target_centre = source.mean(axis=0), target.mean(axis=0)
    source_deviation = (source - source_centre).std(ddof=1)
    target_deviation = (target - target_centre).std(ddof=1)
    source_unit = (source - source_centre) / source_deviation
    target_unit = (target - target_centre) / target_deviation

    u, _, vt = np.linalg.svd(source_unit.T @ target_unit)
    if np.linalg.det(vt.T @ u.T) < 0:
        vt[-1] = -vt[-1]
    rotation = vt.T @ u.T

    scaled = (target_deviation / source_deviation) * rotation
    translation = target_centre - scaled @ source_centre
    matrix = np.column_stack([scaled, translation]).astype(np.float32)
    return matrix, (target_unit[2] - source_unit[2]).astype(np.float32)


def crop_faces(
    pictures: Sequence[Picture],
    affine_matrices: Sequence[NDArray[np.float32]],
    resolution: int,
    stream: DeviceStream,
) -> Tensor:
    """The aligned faces of frames of one size: uint8 RGB (n, 3, resolution, resolution), on the stream's device.

    The pictures are n, at least one; the matrices (2, 3). The face rectangle is sampled
    bilinearly with grey outside the frame and truncated to uint8, then resized with Lanczos. Only the pixels that the
    face touches leave the frame. To be called inside the stream's `running`.
    """
    width, height = face_size(resolution)
    inverses = np.stack([invert_affine(matrix) for matrix in affine_matrices])

    bounds = np.array([warped_bounds(inverse, 0, 0, width - 1, height - 1) for inverse in inverses])
    low, high = np.floor(bounds[:, 0]).astype(np.int64) - 1, np.ceil(bounds[:, 1]).astype(np.int64) + 2
    corners, size = equal_rectangles(low, high, (pictures[0].width, pictures[0].height))
    pixels = stream.upload(cut_out(pictures, corners, size)).permute(0, 3, 1, 2).float()

    # The rectangle cut out may end where the frame goes on; what lies there is beyond the face's reach.
    inverses[:, :, 2] -= corners
    grid = affine_grid(inverses, (width, height), size, pixels.device)
    # Sampling gives zero outside the frame: counted from grey, that is the fill.
    faces = bilinear_sample(pixels.sub_(_GREY), grid).add_(_GREY + _ROUNDING)
    return lanczos4_resize(faces.floor_(), (resolution, resolution))


def cut_out(pictures: Sequence[Picture], corners: NDArray[np.int64], size: tuple[int, int]) -> Tensor:
    """Return parts of pictures, of one `size` (width, height): RGB (n, height, width, 3), dtype as of `Picture.rgb`."""
    parts = [Rectangle(x, y, *size) for x, y in corners.tolist()]
    return torch.from_numpy(np.stack([picture.rgb(part) for picture, part in zip(pictures, parts, strict=True)]))


def crop_face(image: NDArray[np.uint8], affine_matrix: NDArray[np.float32], resolution: int) -> Tensor:
    """Crop the aligned face of one uint8 RGB frame (h, w, 3), on the CPU: uint8 RGB (3, resolution, resolution).

    See `crop_faces`.
    """
    return crop_faces([RgbPicture(image)], [affine_matrix], resolution, DeviceStream(torch.device("cpu")))[0]
