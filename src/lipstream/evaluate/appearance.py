"""How a region looks by itself: how sharp it is, and whether its edge shows. Images are uint8 RGB (h, w, 3)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]

LUMA = np.array([0.299, 0.587, 0.114], np.float32)
"""What red, green and blue weigh in luma (ITU-R BT.601)."""


class Sharpness:
    """Accumulates the Laplacian energy: the mean square of luma's Laplacian over the counted pixels.

    Pertuz et al. 2013, "Analysis of focus measure operators". In squared levels of 255; noise and blocks count as
    sharpness too.
    """

    def __init__(self) -> None:
        self._sum, self._count = 0.0, 0

    def add(self, image: Image, counts: Mask) -> None:
        """Add one frame. counts: its pixels to include, (h, w); those on the frame's own border are left out."""
        box = _bounds(counts)
        if box is None:
            return
        luma, inner = image[box] @ LUMA, counts[box][1:-1, 1:-1]
        middle = luma[1:-1, 1:-1]
        laplacian = luma[:-2, 1:-1] + luma[2:, 1:-1] + luma[1:-1, :-2] + luma[1:-1, 2:] - 4 * middle
        self._sum += float(np.square(laplacian[inner]).sum(dtype=np.float64))
        self._count += int(inner.sum())

    def value(self) -> float | None:
        """Return the mean over all frames so far, None without a pixel."""
        return None if self._count == 0 else self._sum / self._count


class EdgeStep:
    """Accumulates the mean difference between neighbouring pixels on either side of a region's edge, levels of 255."""

    def __init__(self) -> None:
        self._sum, self._count = 0.0, 0

    def add(self, image: Image, counts: Mask) -> None:
        """Add one frame. counts: the region, (h, w)."""
        box = _bounds(counts)
        if box is None:
            return
        picture, inside = image[box].astype(np.int16), counts[box]
        for one, other in ((slice(1, None), slice(None, -1)),) * 2:
            across = inside[one] != inside[other]
            self._sum += float(np.abs(picture[one] - picture[other])[across].mean(axis=1).sum())
            self._count += int(across.sum())
            picture, inside = picture.swapaxes(0, 1), inside.T

    def value(self) -> float | None:
        """Return the mean over all frames so far, None where no region has an edge."""
        return None if self._count == 0 else self._sum / self._count


def _bounds(counts: Mask) -> tuple[slice, slice] | None:
    """Return the rows and columns of the counted pixels and of those next to them, None without any."""
    if not counts.any():
        return None
    rows, columns = (np.flatnonzero(counts.any(axis=axis)) for axis in (1, 0))
    return tuple(slice(max(int(p[0]) - 1, 0), int(p[-1]) + 2) for p in (rows, columns))  # type: ignore[return-value]
