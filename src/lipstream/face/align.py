"""The published alignment: three landmarks, a similarity transform, and the crop that the model sees.

Follows LatentSync's AlignRestore (itself from StyleSync), in float32 instead of float16. The geometry is a
handful of numbers and stays in numpy; the pixels are torch, on the device asked for.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lipstream.imaging import (
    affine_coordinates,
    as_image,
    bilinear_sample,
    invert_affine,
    lanczos4_resize,
    warped_bounds,
)

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


def crop_face(
    image: NDArray[np.uint8] | Tensor,
    affine_matrix: NDArray[np.float32],
    resolution: int,
    device: torch.device | None = None,
) -> Tensor:
    """The aligned face of one frame: uint8 RGB (3, resolution, resolution).

    `image` is uint8 RGB (h, w, 3). The face rectangle is sampled bilinearly with grey outside the frame and
    truncated to uint8, then resized with Lanczos. Only the pixels that the face touches leave the frame. Runs
    on `device`, or where the image lies.
    """
    frame = as_image(image)
    device = device or frame.device
    width, height = face_size(resolution)
    inverse = invert_affine(affine_matrix)

    low, high = warped_bounds(inverse, 0, 0, width - 1, height - 1)
    left, top = (max(math.floor(value) - 1, 0) for value in low)
    right, bottom = (max(math.ceil(value) + 2, 0) for value in high)
    pixels = frame[top:bottom, left:right].to(device).permute(2, 0, 1).float()
    if pixels.numel() == 0:
        return torch.full((3, resolution, resolution), int(_GREY), dtype=torch.uint8, device=device)

    # The rectangle cut out may end where the frame goes on; what lies there is beyond the face's reach.
    inverse[:, 2] -= (left, top)
    size = (pixels.shape[2], pixels.shape[1])
    x, y = affine_coordinates(inverse, range(width), range(height), size, device)
    # Sampling gives zero outside the frame: counted from grey, that is the fill.
    face = bilinear_sample(pixels.sub_(_GREY), x, y).add_(_GREY + _ROUNDING)
    return lanczos4_resize(face.floor_(), (resolution, resolution))
