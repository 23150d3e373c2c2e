"""Which part of a crop is kept and which is repainted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lipstream.imaging import lanczos4_resize

# The published mask's outline was recorded with whole-pixel corners; a pixel belongs to it from this distance on,
# which gives the published 256 x 256 picture back pixel for pixel.
_OUTLINE_PX = 0.4


# The mouth in an aligned crop, as fractions of its side: centre (x, y) and half sizes of a soft ellipse.
_MOUTH_CENTRE_XY = (0.5, 0.56)
_MOUTH_RADIUS_XY = (0.24, 0.15)


def mouth_region(resolution: int) -> Tensor:
    """1 at the centre of an aligned crop's mouth, falling to 0 round it: (1, resolution, resolution), float32."""
    axis = (torch.arange(resolution) + 0.5) / resolution
    x = (axis[None, :] - _MOUTH_CENTRE_XY[0]) / _MOUTH_RADIUS_XY[0]
    y = (axis[:, None] - _MOUTH_CENTRE_XY[1]) / _MOUTH_RADIUS_XY[1]
    return torch.exp(-(x.square() + y.square()).square() / 2)[None]


def face_mask(polygon_xy: Sequence[Sequence[float]], size: int, resolution: int) -> Tensor:
    """1 where the crop is kept, 0 where it is repainted: (1, resolution, resolution), float32, soft at the edge.

    polygon_xy: corners of the repainted region on a `size` x `size` picture. The picture is drawn at `size` and
    scaled with Lanczos over 8 pixels in steps of 1/255 (published behaviour).
    """
    kept = torch.where(torch.from_numpy(_fill(np.asarray(polygon_xy, dtype=np.float64), size)), 0, 255)
    picture = kept.to(torch.uint8)[None]
    return lanczos4_resize(picture, (resolution, resolution)).float() / 255.0


def _fill(polygon: NDArray[np.float64], size: int) -> NDArray[np.bool_]:
    y, x = np.mgrid[:size, :size].astype(np.float64)
    inside = np.zeros((size, size), dtype=bool)
    distance = np.full((size, size), np.inf)
    for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        dx, dy = x1 - x0, y1 - y0
        if dy != 0:  # even-odd rule: count the edges to the right of a pixel
            inside ^= ((y0 <= y) != (y1 <= y)) & (x < x0 + (y - y0) * dx / dy)
        along = np.clip(((x - x0) * dx + (y - y0) * dy) / max(dx * dx + dy * dy, 1e-12), 0.0, 1.0)
        distance = np.minimum(distance, np.hypot(x - x0 - along * dx, y - y0 - along * dy))
    return inside | (distance <= _OUTLINE_PX)
