"""How far pictures are from those they are compared with, in the region that was repainted.

Images are uint8 RGB (h, w, 3), gone through once and one frame at a time: memory does not grow with the clip.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lipstream.imaging import gaussian_blur

Image = NDArray[np.uint8]
Images = Iterable[Image]

# Of Wang et al. 2004: a Gaussian window of 11 x 11 pixels, and constants for pixels from 0 to 255.
_RADIUS, _SIGMA = 5, 1.5
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def psnr_db(reference: Images, pictures: Images, untouched: Images | None = None, tolerance: int = 0) -> float | None:
    """Peak signal-to-noise ratio of uint8 pictures (h, w, 3) beside the reference's, dB; inf where they are equal.

    untouched: the frames before anything was painted; only pixels that differ from them in either picture count,
    since the rest is equal whatever the settings. tolerance: levels of 255 by which a pixel may differ and still be
    untouched, for frames that were compressed. None where no pixel counts.
    """
    psnr = Psnr()
    for frames in compared(reference, pictures, untouched, tolerance):
        psnr.add(frames)
    return psnr.value()


def ssim(reference: Images, pictures: Images, untouched: Images | None = None, tolerance: int = 0) -> float | None:
    """Structural similarity of uint8 pictures (h, w, 3) with the reference's, at most 1, which is equal.

    After Wang et al. 2004, "Image quality assessment: from error visibility to structural similarity": on luma, the
    mean over the pixels that count, of all frames together. Which ones do, and None: as for `psnr_db`.
    """
    similarity = Ssim()
    for frames in compared(reference, pictures, untouched, tolerance):
        similarity.add(frames)
    return similarity.value()


class Compared(NamedTuple):
    """A frame of both sides (h, w, 3) and which of its pixels count: (h, w) bool."""

    reference: Image
    picture: Image
    counts: NDArray[np.bool_]


def compared(
    reference: Images, pictures: Images, untouched: Images | None = None, tolerance: int = 0
) -> Iterator[Compared]:
    """The frames of both side by side. Raises ValueError where one has more than another."""
    befores: Iterable[Image | None] = itertools.repeat(None) if untouched is None else untouched
    pairs = zip(reference, pictures, strict=True)
    for (one, other), before in zip(pairs, befores, strict=untouched is not None):
        if before is None:
            yield Compared(one, other, np.ones(one.shape[:2], np.bool_))
        else:
            yield Compared(one, other, _differs(one, before, tolerance) | _differs(other, before, tolerance))


def _differs(image: Image, before: Image, tolerance: int) -> NDArray[np.bool_]:
    """Where an image differs from that before by more than `tolerance` in any channel: (h, w)."""
    difference = np.maximum(image, before) - np.minimum(image, before)
    differs: NDArray[np.bool_] = (difference > tolerance).any(axis=-1)
    return differs


class Psnr:
    """Adds up `psnr_db` frame by frame."""

    def __init__(self) -> None:
        self._squares, self._count = 0, 0

    def add(self, frames: Compared) -> None:
        """Count one frame's pixels."""
        difference = frames.reference[frames.counts].astype(np.int64) - frames.picture[frames.counts]
        self._squares += int(np.square(difference).sum())
        self._count += difference.size

    def value(self) -> float | None:
        """Of all frames so far, dB."""
        if self._count == 0:
            return None
        return math.inf if self._squares == 0 else 10 * math.log10(255**2 * self._count / self._squares)


class Ssim:
    """Adds up `ssim` frame by frame."""

    def __init__(self) -> None:
        self._sum, self._count = 0.0, 0

    def add(self, frames: Compared) -> None:
        """Count one frame's pixels. Only the part of the frame that they lie in, and its margin, is looked at."""
        if not frames.counts.any():
            return
        rows, columns = (_span(frames.counts.any(axis=axis)) for axis in (1, 0))
        one, other = (_luma(image[rows, columns]) for image in (frames.reference, frames.picture))
        counts = torch.from_numpy(frames.counts[rows, columns])
        found = ssim_map(one, other)[counts]
        self._sum += float(found.double().sum())
        self._count += len(found)

    def value(self) -> float | None:
        """Of all frames so far."""
        return None if self._count == 0 else self._sum / self._count


def ssim_map(one: Tensor, other: Tensor) -> Tensor:
    """The similarity at every pixel of two pictures (h, w), float32 from 0 to 255; mirrored beyond their edges."""
    mean_one, mean_other, square_one, square_other, product = (
        gaussian_blur(plane, _RADIUS, _SIGMA) for plane in (one, other, one * one, other * other, one * other)
    )
    squares, means = mean_one * mean_one + mean_other * mean_other, mean_one * mean_other
    variances, covariance = square_one + square_other - squares, product - means
    return (2 * means + _C1) * (2 * covariance + _C2) / ((squares + _C1) * (variances + _C2))


def _span(holds: NDArray[np.bool_]) -> slice:
    """From the first to the last place that holds, with a window's margin."""
    places = np.nonzero(holds)[0]
    return slice(max(int(places[0]) - _RADIUS, 0), int(places[-1]) + _RADIUS + 1)


def _luma(image: Image) -> Tensor:
    """An image (h, w, 3) as grey (h, w) float32, from 0 to 255."""
    return torch.from_numpy(image.astype(np.float32) @ _LUMA)
