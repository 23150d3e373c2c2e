"""Pixel mathematics shared by the face and the latent stages: sampling, resizing, erosion and blur.

Torch only, on whatever device the pixels live. Images are channels first, (..., c, h, w); a mask is (h, w).
Pixel coordinates count from the centre of the upper left pixel.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

# OpenCV resizes bytes with coefficients in 2048ths; following it keeps the result within one level.
_COEFFICIENT_STEPS = 2048


def invert_affine(matrix: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """The inverse of a (2, 3) affine matrix, as another (2, 3) matrix in float64."""
    inverse: NDArray[np.float64] = np.linalg.inv(np.vstack([matrix, [0.0, 0.0, 1.0]]).astype(np.float64))
    return inverse[:2]


def as_image(image: NDArray[np.uint8] | Tensor) -> Tensor:
    """A uint8 picture as a tensor; a copy only of arrays that torch cannot share (read-only, flipped)."""
    return image if isinstance(image, Tensor) else torch.from_numpy(np.require(image, requirements=["C", "W"]))


def warped_bounds(
    matrix: NDArray[np.floating[Any]], left: float, top: float, right: float, bottom: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The least and the greatest x, y that `matrix` (2, 3) sends a rectangle's corners to."""
    corners = np.array([[left, top, 1], [right, top, 1], [left, bottom, 1], [right, bottom, 1]]) @ matrix.T
    return corners.min(axis=0), corners.max(axis=0)


def affine_coordinates(
    matrix: NDArray[np.floating[Any]], columns: range, rows: range, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Where `matrix` (2, 3) sends the pixels of a rectangle: x and y, each float32 of (rows, columns).

    The sums along each axis are taken in float64, so that the coordinates do not depend on the rectangle.
    """
    matrix = np.asarray(matrix, np.float64)
    along_row = matrix[:, :1] * np.asarray(columns) + matrix[:, 2:]
    along_column = matrix[:, 1:2] * np.asarray(rows)
    coordinates = along_column[:, :, None] + along_row[:, None, :]
    x, y = torch.from_numpy(coordinates.astype(np.float32)).to(device)
    return x, y


def bilinear_sample(image: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Bilinear values (c, H, W) of a float image (c, h, w) at pixel coordinates (H, W); zero outside."""
    height, width = image.shape[-2:]
    # The half-pixel convention normalises any coordinate, also in an image one pixel wide.
    grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1)
    return F.grid_sample(image[None], grid[None], mode="bilinear", padding_mode="zeros", align_corners=False)[0]


def bilinear_coverage(width: int, height: int, x: Tensor, y: Tensor) -> Tensor:
    """What `bilinear_sample` gives for a picture of ones: 1 inside, falling to 0 within a pixel outside."""
    covered_x = torch.minimum(x + 1, width - x).clamp(0, 1)
    covered_y = torch.minimum(y + 1, height - y).clamp(0, 1)
    return covered_x * covered_y


def _lanczos4_taps(size: int, new_size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The eight source indices (new_size, 8) and weights (new_size, 8) of each new pixel along one axis."""
    position = (np.arange(new_size) + 0.5) * (size / new_size) - 0.5
    first = np.floor(position).astype(np.int64) - 3
    index = first[:, None] + np.arange(8)
    distance = position[:, None] - index
    weight = np.sinc(distance) * np.sinc(distance / 4)
    weight /= weight.sum(axis=1, keepdims=True)
    weight = np.round(weight * _COEFFICIENT_STEPS) / _COEFFICIENT_STEPS
    return (
        torch.from_numpy(index.clip(0, size - 1)).to(device),
        torch.from_numpy(weight.astype(np.float32)).to(device),
    )


def lanczos4_resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize a uint8 image (..., h, w) to `size` (height, width) as OpenCV's INTER_LANCZOS4 does.

    Lanczos over 8 pixels, no antialias, edges replicated, rounded to uint8.
    """
    height, width = size
    wide = _lanczos4_rows(image.float().transpose(-1, -2).contiguous(), width).transpose(-1, -2)
    resized = _lanczos4_rows(wide.contiguous(), height)
    return resized.add_(0.5).floor_().clamp_(0, 255).to(torch.uint8)


def _lanczos4_rows(image: Tensor, new_size: int) -> Tensor:
    """A float image (..., h, w) with `new_size` rows. Whole rows are gathered, which is what memory is good at."""
    index, weight = _lanczos4_taps(image.shape[-2], new_size, image.device)
    rows = image.new_zeros(*image.shape[:-2], new_size, image.shape[-1])
    for tap in range(8):
        rows.addcmul_(image.index_select(-2, index[:, tap]), weight[:, tap, None])
    return rows


def erode(mask: Tensor, before: int, after: int) -> Tensor:
    """The minimum over a square from `before` pixels before to `after` after each pixel of a mask (h, w).

    Pixels beyond the mask do not take part.
    """
    size = before + after + 1
    padded = F.pad(mask, (before, after, before, after), value=math.inf)
    for dim in (0, 1):
        # Windows of 1, 2, 4 ... pixels, then two that overlap to the wanted size: O(log size) passes.
        span = 1
        while 2 * span <= size:
            padded = _minimum_with_next(padded, dim, span)
            span *= 2
        if span < size:
            padded = _minimum_with_next(padded, dim, size - span)
    return padded


def _minimum_with_next(values: Tensor, dim: int, offset: int) -> Tensor:
    length = values.shape[dim] - offset
    return torch.minimum(values.narrow(dim, 0, length), values.narrow(dim, offset, length))


def gaussian_blur(mask: Tensor, radius: int, sigma: float) -> Tensor:
    """A mask (h, w) blurred with a Gaussian of 2 radius + 1 taps, mirrored about its edge pixels."""
    if radius == 0:
        return mask
    taps = torch.arange(-radius, radius + 1, dtype=torch.float32, device=mask.device)
    kernel = torch.exp(-taps.square() / (2 * sigma**2))
    kernel /= kernel.sum()
    height, width = mask.shape
    rows = _mirrored_indices(height, radius, mask.device)
    columns = _mirrored_indices(width, radius, mask.device)
    blurred = F.conv2d(mask[rows][None, None], kernel.view(1, 1, -1, 1))
    return F.conv2d(blurred[..., columns], kernel.view(1, 1, 1, -1))[0, 0]


def _mirrored_indices(size: int, radius: int, device: torch.device) -> Tensor:
    """Indices of an axis lengthened by `radius` at both ends, mirrored as often as a short axis needs."""
    period = max(2 * (size - 1), 1)
    index = torch.arange(-radius, size + radius, device=device).remainder(period)
    return torch.minimum(index, period - index).clamp(max=size - 1)
