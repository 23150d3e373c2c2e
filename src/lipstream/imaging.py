"""Pixel mathematics shared by the face and the latent stages: sampling, resizing, erosion and blur.

Torch only, on whatever device the pixels live. Images are channels first, (..., c, h, w); masks are (..., h, w).
Pixel coordinates count from the centre of the upper left pixel.
"""

from __future__ import annotations

import functools
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
    """Return the inverse of a (2, 3) affine matrix, as another (2, 3) matrix in float64.

    Written out: numpy's own wakes a thread of its library for any matrix, which then spins on a core for milliseconds.
    """
    (a, b, x), (c, d, y) = np.asarray(matrix, np.float64).tolist()
    inverse = np.array([[d, -b], [-c, a]]) / (a * d - b * c)
    return np.column_stack([inverse, -inverse @ (x, y)])


def warped_bounds(
    matrix: NDArray[np.floating[Any]], left: float, top: float, right: float, bottom: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The least and the greatest x, y that `matrix` (2, 3) sends a rectangle's corners to."""
    corners = np.array([[left, top, 1], [right, top, 1], [left, bottom, 1], [right, bottom, 1]]) @ matrix.T
    return corners.min(axis=0), corners.max(axis=0)


def equal_rectangles(
    low: NDArray[np.integer[Any]], high: NDArray[np.integer[Any]], image_size: tuple[int, int]
) -> tuple[NDArray[np.int64], tuple[int, int]]:
    """Rectangles of one size inside an image that hold what it has from `low` to before `high`, each (n, 2), x and y.

    Returns their upper left corners (n, 2) and their width and height, which are at least 1.
    """
    low, high = low.clip(0, image_size), high.clip(0, image_size)
    size = (high - low).max(axis=0).clip(1)
    return np.minimum(low, np.asarray(image_size) - size).astype(np.int64), (int(size[0]), int(size[1]))


def affine_grid(
    matrices: NDArray[np.floating[Any]], new_size: tuple[int, int], size: tuple[int, int], device: torch.device
) -> Tensor:
    """Where each of the matrices (n, 2, 3) sends the pixels of a new picture: x and y, float32 (n, h, w, 2).

    Sizes are width and height. Coordinates are from -1 at one border to 1 at the other of a picture of `size`, borders
    being half a pixel beyond the outer pixels' centres: any picture can be normalised, also one that is one pixel wide.
    """
    across, down, shift = np.moveaxis(np.asarray(matrices, np.float64), 2, 0)[..., None]
    columns, rows = np.arange(new_size[0]), np.arange(new_size[1])
    grid = torch.empty(len(matrices), new_size[1], new_size[0], 2, device=device)
    for axis, length in enumerate(size):
        along_row = np.float32(2 / length * (across[:, axis] * columns + shift[:, axis]) + 1 / length - 1)
        along_column = np.float32(2 / length * down[:, axis] * rows)
        a, b = (torch.from_numpy(numbers).to(device) for numbers in (along_row, along_column))
        torch.add(a[:, None], b[..., None], out=grid[..., axis])
    return grid


def bilinear_sample(images: Tensor, grid: Tensor) -> Tensor:
    """Bilinear values (n, c, H, W) of float images (n, c, h, w) where `affine_grid` says, zero outside."""
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def bilinear_coverage(width: int, height: int, grid: Tensor) -> Tensor:
    """Return `bilinear_sample` of a picture of ones: 1 inside, falling to 0 within a pixel outside: (n, H, W)."""
    covered_x, covered_y = (
        torch.abs(grid[..., axis].contiguous()).mul_(-length / 2).add_((length + 1) / 2).clamp_(0, 1)
        for axis, length in enumerate((width, height))
    )
    return covered_x.mul_(covered_y)


@functools.lru_cache(maxsize=16)
def _lanczos4_taps(size: int, new_size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the eight source indices (new_size, 8) and weights (new_size, 8) of each new pixel along one axis."""
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
    """Resize an image (..., h, w) of whole numbers from 0 to 255 to `size` (height, width), uint8.

    As OpenCV's INTER_LANCZOS4: Lanczos over 8 pixels, no antialias, edges replicated, rounded.
    """
    height, width = size
    rows = _lanczos4_taps(image.shape[-2], height, image.device)
    columns = _lanczos4_taps(image.shape[-1], width, image.device)
    planes = image.reshape(-1, *image.shape[-2:])
    tall = _weighted_rows(planes.flatten(0, 1).float(), *_for_each(len(planes), *rows, image.shape[-2]))
    wide = _weighted_rows(tall.t().contiguous(), *columns)
    resized = wide.add_(0.5).clamp_(0, 255).t().to(torch.uint8, memory_format=torch.contiguous_format)
    return resized.view(*image.shape[:-2], height, width)


def _weighted_rows(rows: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """New rows (n, m), each the sum of the float rows (h, m) at `index` (n, k) times `weight` (n, k).

    It is what an embedding bag computes, in one pass over the memory.
    """
    return F.embedding_bag(index, rows, mode="sum", per_sample_weights=weight)


def _for_each(count: int, index: Tensor, weight: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Index and weight for `count` planes of `size` rows, one below the other, from those (n, k) of one plane."""
    if count == 1:
        return index, weight
    first = torch.arange(count, device=index.device).repeat_interleave(len(index)) * size
    return index.repeat(count, 1) + first[:, None], weight.repeat(count, 1)


def erode(masks: Tensor, before: int, after: int) -> Tensor:
    """Return the minimum over a square from `before` pixels before to `after` after each pixel of masks (..., h, w).

    Pixels beyond the mask do not take part.
    """
    size = before + after + 1
    padded = F.pad(masks, (before, after, before, after), value=math.inf)
    for dim in (-2, -1):
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


def gaussian_kernel(radius: int, sigma: float, device: torch.device) -> Tensor:
    """Return the 2 radius + 1 taps of a Gaussian, float32, their sum 1."""
    taps = torch.arange(-radius, radius + 1, dtype=torch.float32, device=device)
    kernel = torch.exp(-taps.square() / (2 * sigma**2))
    return kernel / kernel.sum()


def gaussian_blur(masks: Tensor, radius: int, sigma: float) -> Tensor:
    """Masks (..., h, w) blurred with a Gaussian of 2 radius + 1 taps, mirrored about their edge pixels."""
    if radius == 0:
        return masks
    height, width = masks.shape[-2:]
    blurred, count = masks.reshape(-1, width), masks.numel() // (height * width)
    for size, planes in ((height, count), (width, 1)):  # the rows, then, turned, the columns
        taps = _gaussian_taps(size, radius, sigma, masks.device)
        blurred = _weighted_rows(blurred, *_for_each(planes, *taps, size)).t().contiguous()
    return blurred.view(masks.shape)


def _gaussian_taps(size: int, radius: int, sigma: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the source indices and the weights, each (size, 2 radius + 1), of each pixel along one axis."""
    kernel = gaussian_kernel(radius, sigma, device)
    index = _mirrored_indices(size, radius, device).unfold(0, 2 * radius + 1, 1)
    return index.contiguous(), kernel.expand(size, -1).contiguous()


def _mirrored_indices(size: int, radius: int, device: torch.device) -> Tensor:
    """Indices of an axis lengthened by `radius` at both ends, mirrored as often as a short axis needs."""
    period = max(2 * (size - 1), 1)
    index = torch.arange(-radius, size + radius, device=device).remainder(period)
    return torch.minimum(index, period - index).clamp(max=size - 1)
