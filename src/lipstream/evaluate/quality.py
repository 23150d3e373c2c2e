"""How far pictures are from those they are compared with, in the region that was repainted.

Images are uint8 RGB (h, w, 3), gone through once and one frame at a time: memory does not grow with the clip.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lipstream.evaluate.lip_metrics import MouthFinder, Mouths
from lipstream.imaging import gaussian_blur

Image = NDArray[np.uint8]
Images = Iterable[Image]

# Of Wang et al. 2004: a Gaussian window of 11 x 11 pixels, and constants for pixels from 0 to 255.
_RADIUS, _SIGMA = 5, 1.5
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


@dataclass(frozen=True)
class Quality:
    """How far pictures are from the reference's, over `frames` frames; None where it cannot be measured.

    frames_without_face: those where a mouth was not found in one of the two, left out of landmark_distance and
    opening_correlation. All but these two look at the repainted region (see psnr_db). psnr_db: inf where all is equal.
    ssim: 1 is equal. landmark_distance: of the inner lips' points, in heights of the face. opening_correlation: of how
    far the mouth is open, over time. flicker and reference_flicker: mean absolute second difference over time of the
    pictures and of the reference, levels of 255.
    """

    frames: int
    frames_without_face: int | None
    psnr_db: float | None
    ssim: float | None
    landmark_distance: float | None
    opening_correlation: float | None
    flicker: float | None
    reference_flicker: float | None


def measure(
    reference: Images,
    pictures: Images,
    untouched: Images | None = None,
    *,
    tolerance: int = 0,
    finder: MouthFinder | None = None,
) -> Quality:
    """All figures in one pass over the pictures; those of mouths only with a finder. As `psnr_db` otherwise."""
    meter = Meter(finder)
    for frames in compared(reference, pictures, untouched, tolerance):
        meter.add(frames)
    return meter.value()


def psnr_db(reference: Images, pictures: Images, untouched: Images | None = None, tolerance: int = 0) -> float | None:
    """Peak signal-to-noise ratio of uint8 pictures (h, w, 3) beside the reference's, dB; inf where they are equal.

    untouched: the frames before anything was generated; only pixels that differ from them in either picture count,
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


def flicker(pictures: Images, counts: Iterable[NDArray[np.bool_]]) -> float | None:
    """Mean absolute second difference over time, |before - 2 now + after|, levels of 255; a still's is 0.

    counts: which pixels of each picture do, (h, w). None where none does, or where there are fewer than three pictures.
    """
    unrest = Flicker()
    for image, places in zip(pictures, counts, strict=True):
        unrest.add(image, places)
    return unrest.value()


class Compared(NamedTuple):
    """A frame of both sides and the same frame of the source (h, w, 3), and which pixels count: (h, w) bool."""

    reference: Image
    picture: Image
    before: Image
    counts: NDArray[np.bool_]

    @classmethod
    def generated(cls, reference: Image, picture: Image, before: Image, tolerance: int) -> Compared:
        """With those pixels counting that differ from the frame before in either picture."""
        counts = _differs(reference, before, tolerance) | _differs(picture, before, tolerance)
        return cls(reference, picture, before, counts)


def compared(
    reference: Images, pictures: Images, untouched: Images | None = None, tolerance: int = 0
) -> Iterator[Compared]:
    """The frames of all side by side. Raises ValueError where one has more than another."""
    if untouched is None:
        for one, other in zip(reference, pictures, strict=True):
            yield Compared(one, other, one, np.ones(one.shape[:2], np.bool_))
        return
    for one, other, before in zip(reference, pictures, untouched, strict=True):
        yield Compared.generated(one, other, before, tolerance)


def _differs(image: Image, before: Image, tolerance: int) -> NDArray[np.bool_]:
    """Where an image differs from that before by more than `tolerance` in any channel: (h, w)."""
    difference = np.maximum(image, before) - np.minimum(image, before)
    return np.asarray((difference > tolerance).any(axis=-1))


class Meter:
    """Adds up `Quality` frame by frame, in order; mouths only with a finder."""

    def __init__(self, finder: MouthFinder | None = None) -> None:
        self._frames = 0
        self._psnr, self._ssim = Psnr(), Ssim()
        self._flicker, self._reference_flicker = Flicker(), Flicker()
        self._mouths = None if finder is None else Mouths(finder)

    def add(self, frames: Compared) -> None:
        """Count one frame."""
        self._frames += 1
        self._psnr.add(frames)
        self._ssim.add(frames)
        self._flicker.add(frames.picture, frames.counts)
        self._reference_flicker.add(frames.reference, frames.counts)
        if self._mouths is not None:
            self._mouths.add(frames.reference, frames.picture, frames.before)

    def value(self) -> Quality:
        """Of all frames so far."""
        mouths = self._mouths
        return Quality(
            frames=self._frames,
            frames_without_face=None if mouths is None else mouths.frames_without,
            psnr_db=self._psnr.value(),
            ssim=self._ssim.value(),
            landmark_distance=None if mouths is None else mouths.landmark_distance(),
            opening_correlation=None if mouths is None else mouths.opening_correlation(),
            flicker=self._flicker.value(),
            reference_flicker=self._reference_flicker.value(),
        )


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
        rows, columns = (_span(np.asarray(frames.counts.any(axis=axis))) for axis in (1, 0))
        one, other = (_luma(image[rows, columns]) for image in (frames.reference, frames.picture))
        counts = torch.from_numpy(frames.counts[rows, columns])
        found = ssim_map(one, other)[counts]
        self._sum += float(found.double().sum())
        self._count += len(found)

    def value(self) -> float | None:
        """Of all frames so far."""
        return None if self._count == 0 else self._sum / self._count


class Flicker:
    """Adds up `flicker` frame by frame, in order; holds two frames."""

    def __init__(self) -> None:
        self._held: deque[tuple[Image, NDArray[np.bool_]]] = deque(maxlen=2)
        self._sum, self._count = 0, 0

    def add(self, image: Image, counts: NDArray[np.bool_]) -> None:
        """Take the next frame: (h, w, 3), and which of its pixels count, (h, w)."""
        if len(self._held) == 2:
            (first, _), (middle, places) = self._held
            past, now, then = (frame[places].astype(np.int32) for frame in (first, middle, image))
            self._sum += int(np.abs(past - 2 * now + then).sum())
            self._count += now.size
        self._held.append((image, counts))

    def value(self) -> float | None:
        """Of all frames so far that have one before and one after."""
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
