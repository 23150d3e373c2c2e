"""Pasting a repainted face back into its frame: the published blending, only where the face reaches.

Follows LatentSync's restore_img in float32. Everything outside the rectangle that the warped face touches
would be blended with weight zero, so it is never computed and the result is the same.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from lipstream.face.align import face_size
from lipstream.imaging import (
    affine_coordinates,
    bilinear_coverage,
    bilinear_sample,
    erode,
    gaussian_blur,
    invert_affine,
    warped_bounds,
)

# The published code fills with 127 also here, where the face is in [-1, 1]: white once clamped.
_FILL = 127.0
_MARGIN = 2
_FINER = 2


def resize_face(faces: Tensor) -> Tensor:
    """Decoded crops (..., c, resolution, resolution) at the face rectangle's size, bicubic with antialias.

    Of four channels (see `latent.texture`) at _FINER times that: the rectangle is narrower than the crop, and what the
    model painted would be lost.
    """
    width, height = (length * _finer(faces.shape[-3]) for length in face_size(faces.shape[-1]))
    flat = faces.float().reshape(-1, *faces.shape[-3:])
    resized = F.interpolate(flat, size=(height, width), mode="bicubic", antialias=True, align_corners=False)
    return resized.reshape(*faces.shape[:-2], height, width)


def paste_face(
    image: NDArray[np.uint8], face: Tensor, affine_matrix: NDArray[np.float32], *, in_place: bool = False
) -> NDArray[np.uint8]:
    """The frame with the face blended in, uint8 RGB (h, w, 3).

    `image` is uint8 RGB (h, w, 3). It is left as it was and the result is a copy, unless `in_place`: copying a
    large frame takes as long as the blending. `face` is float (3, h, w) in [-1, 1] at the face rectangle's size
    (see `resize_face`), on the device to compute on, or has the frame's share as a fourth channel (see
    `latent.texture`); `affine_matrix` (2, 3) is the one the crop was taken with.
    """
    restored = image if in_place else np.array(image)
    size = (face.shape[2] // _finer(len(face)), face.shape[1] // _finer(len(face)))
    columns, rows = _touched(affine_matrix, size, (restored.shape[1], restored.shape[0]))
    if not columns or not rows:
        return restored
    x, y = affine_coordinates(affine_matrix, columns, rows, size, face.device)
    reach = bilinear_coverage(*size, x, y)
    warped = bilinear_sample(face.float(), x, y)
    warped[:3].add_((1 - reach).mul_(_FILL))
    inner = erode(reach, before=1, after=0)
    weight = _soft_mask(inner)
    target = torch.from_numpy(restored[rows.start : rows.stop, columns.start : columns.stop])
    original = target.to(face.device).permute(2, 0, 1).contiguous().float()
    painted = _levels(warped, original).mul_(inner)
    blended = torch.lerp(original, painted, weight)
    target.copy_(blended.permute(1, 2, 0))
    return restored


def _finer(n_channels: int) -> int:
    return 1 if n_channels == 3 else _FINER


def _levels(face: Tensor, original: Tensor) -> Tensor:
    """The face (3 or 4, h, w) as it lies on the frame, `original` (3, h, w), 0 to 255; `face` is overwritten."""
    painted, share = face[:3], face[3:]
    if len(share) == 0:
        return painted.div_(2).add_(0.5).clamp_(0, 1).mul_(255)
    return painted.sub_(share).add_(1).mul_(127.5).addcmul_(share, original).clamp_(0, 255)


def _touched(matrix: NDArray[np.float32], size: tuple[int, int], frame_size: tuple[int, int]) -> tuple[range, range]:
    """Columns and rows of the frame that the warped face can reach, and a margin where the frame goes on.

    That margin makes erosion and blur on the rectangle equal to those on the whole frame: a window that
    leaves the rectangle inside the frame has already met a zero.
    """
    width, height = size
    low, high = warped_bounds(invert_affine(matrix), -1, -1, width, height)
    columns, rows = (
        range(
            max(math.floor(low[axis]) - _MARGIN, 0),
            min(math.ceil(high[axis]) + _MARGIN + 1, frame_size[axis]),
        )
        for axis in (0, 1)
    )
    return columns, rows


def _soft_mask(mask: Tensor) -> Tensor:
    """The blending weight: the mask shrunk by a twentieth of its size, its edge blurred as wide."""
    edge = int(float(mask.sum()) ** 0.5) // 20
    # An empty structuring element, for a face of some twenty pixels, stands for a 3 x 3 square in OpenCV.
    before, after = (edge, edge - 1) if edge else (1, 1)
    sigma = 0.3 * (edge - 1) + 0.8
    return gaussian_blur(erode(mask, before, after), edge, sigma)
