"""Image metrics over the repainted region: PSNR, SSIM, flicker, and mouth metrics with a finder.

Images are uint8 RGB (h, w, 3). They are read once, one frame at a time, so memory does not grow with the clip.
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

from lipstream.evaluate.appearance import LUMA, EdgeStep, Sharpness
from lipstream.evaluate.lip_metrics import MouthFinder, Mouths
from lipstream.imaging import gaussian_blur

Image = NDArray[np.uint8]
Images = Iterable[Image]

# Wang et al. 2004: a Gaussian window of 11 x 11 pixels, and constants for pixels from 0 to 255.
_RADIUS, _SIGMA = 5, 1.5
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


@dataclass(frozen=True)
class Quality:
    """Metrics of a clip against a reference, over `frames` frames; None where a metric is undefined.

    psnr_db, ssim, sharpness, flicker and edge_step cover the repainted region (see the function psnr_db); the names are
    those of measures.MEASURES. psnr_db is inf and ssim 1 for equal clips. landmark_distance: mean distance of the inner
    lips' mesh points, in face heights. opening_correlation: Pearson's r of the mouth opening over time. flicker: mean
    absolute second difference over time, in levels of 255. sharpness, edge_step: see evaluate/appearance.py.
    reference_*: of the reference. frames_without_face: frames in which the mouth was not found in one of the two; the
    two mouth metrics leave them out.
    """

    frames: int
    frames_without_face: int | None
    psnr_db: float | None
    ssim: float | None
    landmark_distance: float | None
    opening_correlation: float | None
    flicker: float | None
    reference_flicker: float | None
    sharpness: float | None
    reference_sharpness: float | None
    edge_step: float | None
    reference_edge_step: float | None


def measure(
    reference: Images,
    pictures: Images,
    untouched: Images | None = None,
    *,
    tolerance: int = 0,
    finder: MouthFinder | None = None,
) -> Quality:
    """Compute all metrics in one pass; mouth metrics only with a finder. Other arguments are those of `psnr_db`."""
    meter = Meter(finder)
    for frames in compared(reference, pictures, untouched, tolerance):
        meter.add(frames)
    return meter.value()


def psnr_db(reference: Images, pictures: Images, untouched: Images | None = None, tolerance: int = 0) -> float | None:
    """Return the peak signal-to-noise ratio in dB of uint8 images (h, w, 3); inf if equal, None if no pixel counts.

    untouched: the source frames. Only pixels that differ from them in either clip count, since all others are equal
    for any settings; None counts every pixel. tolerance: differences up to this many levels of 255 are taken for
    compression artefacts.
    """
    psnr = Psnr()
    for frames in compared(reference, pictures, untouched, tolerance):
        psnr.add(frames)
    return psnr.value()


def ssim(reference: Images, pictures: Images, untouched: Images | None = None, tolerance: int = 0) -> float | None:
    """Return the structural similarity of uint8 images (h, w, 3), at most 1 (equal); None if no pixel counts.

    Wang et al. 2004, "Image quality assessment: from error visibility to structural similarity": computed on luma and
    averaged over the counted pixels of all frames. Arguments are those of `psnr_db`.
    """
    similarity = Ssim()
    for frames in compared(reference, pictures, untouched, tolerance):
        similarity.add(frames)
    return similarity.value()


def flicker(pictures: Images, counts: Iterable[NDArray[np.bool_]]) -> float | None:
    """Return the mean absolute second difference over time, |previous - 2 current + next|, in levels of 255.

    counts: the pixels of each image to include, (h, w) bool. None if there are none, or fewer than three images.
    """
    total = Flicker()
    for image, places in zip(pictures, counts, strict=True):
        total.add(image, places)
    return total.value()


class Compared(NamedTuple):
    """One frame of both clips and of the source (h, w, 3), and the pixels to include: (h, w) bool."""

    reference: Image
    picture: Image
    before: Image
    counts: NDArray[np.bool_]

    @classmethod
    def generated(cls, reference: Image, picture: Image, before: Image, tolerance: int) -> Compared:
        """Include the pixels in which either image differs from the source by more than `tolerance`."""
        counts = _differs(reference, before, tolerance) | _differs(picture, before, tolerance)
        return cls(reference, picture, before, counts)


def compared(
    reference: Images, pictures: Images, untouched: Images | None = None, tolerance: int = 0
) -> Iterator[Compared]:
    """Yield the frames of all clips together. Raises ValueError if their lengths differ."""
    if untouched is None:
        for one, other in zip(reference, pictures, strict=True):
            yield Compared(one, other, one, np.ones(one.shape[:2], np.bool_))
        return
    for one, other, before in zip(reference, pictures, untouched, strict=True):
        yield Compared.generated(one, other, before, tolerance)


def _differs(image: Image, before: Image, tolerance: int) -> NDArray[np.bool_]:
    """Return the mask (h, w) of pixels that differ by more than `tolerance` in any channel."""
    difference = np.maximum(image, before) - np.minimum(image, before)
    return np.asarray((difference > tolerance).any(axis=-1))


class Meter:
    """Accumulates `Quality` frame by frame, in order; mouth metrics only with a finder."""

    def __init__(self, finder: MouthFinder | None = None) -> None:
        self._frames = 0
        self._psnr, self._ssim = Psnr(), Ssim()
        self._own, self._reference = Appearance(), Appearance()
        self._mouths = None if finder is None else Mouths(finder)

    def add(self, frames: Compared) -> None:
        """Add one frame."""
        self._frames += 1
        self._psnr.add(frames)
        self._ssim.add(frames)
        self._own.add(frames.picture, frames.counts)
        self._reference.add(frames.reference, frames.counts)
        if self._mouths is not None:
            self._mouths.add(frames.reference, frames.picture, frames.before)

    def value(self) -> Quality:
        """Return the metric over all frames so far."""
        mouths = self._mouths
        return Quality(
            frames=self._frames,
            frames_without_face=None if mouths is None else mouths.frames_without,
            psnr_db=self._psnr.value(),
            ssim=self._ssim.value(),
            landmark_distance=None if mouths is None else mouths.landmark_distance(),
            opening_correlation=None if mouths is None else mouths.opening_correlation(),
            **self._own.values(),
            **{f"reference_{name}": value for name, value in self._reference.values().items()},
        )


class Appearance:
    """Accumulates how a clip's region looks by itself: `sharpness`, `flicker` and `edge_step`."""

    def __init__(self) -> None:
        self._sharpness, self._flicker, self._edge_step = Sharpness(), Flicker(), EdgeStep()

    def add(self, image: Image, counts: NDArray[np.bool_]) -> None:
        """Add one frame (h, w, 3). counts: the region, (h, w) bool."""
        for measure in (self._sharpness, self._flicker, self._edge_step):
            measure.add(image, counts)

    def values(self) -> dict[str, float | None]:
        """Return the measures over all frames so far, by name."""
        return {
            "sharpness": self._sharpness.value(),
            "flicker": self._flicker.value(),
            "edge_step": self._edge_step.value(),
        }


class Psnr:
    """Accumulates `psnr_db` frame by frame."""

    def __init__(self) -> None:
        self._squares, self._count = 0, 0

    def add(self, frames: Compared) -> None:
        """Add one frame."""
        difference = frames.reference[frames.counts].astype(np.int64) - frames.picture[frames.counts]
        self._squares += int(np.square(difference).sum())
        self._count += difference.size

    def value(self) -> float | None:
        """Return the ratio over all frames so far, in dB."""
        if self._count == 0:
            return None
        return math.inf if self._squares == 0 else 10 * math.log10(255**2 * self._count / self._squares)


class Ssim:
    """Accumulates `ssim` frame by frame."""

    def __init__(self) -> None:
        self._sum, self._count = 0.0, 0

    def add(self, frames: Compared) -> None:
        """Add one frame. Only the bounding box of its counted pixels, plus a margin, is computed."""
        if not frames.counts.any():
            return
        similarity, box = similarity_near(frames.reference, frames.picture, frames.counts)
        self.add_map(similarity, frames.counts[box])

    def add_map(self, similarity: Tensor, counts: NDArray[np.bool_]) -> None:
        """Add one frame's similarity (h, w) at its counted pixels, (h, w) bool."""
        found = similarity[torch.from_numpy(counts)]
        self._sum += float(found.double().sum())
        self._count += len(found)

    def value(self) -> float | None:
        """Return the metric over all frames so far."""
        return None if self._count == 0 else self._sum / self._count


class Flicker:
    """Accumulates `flicker` frame by frame, in order; keeps the last two frames."""

    def __init__(self) -> None:
        self._held: deque[tuple[Image, NDArray[np.bool_]]] = deque(maxlen=2)
        self._sum, self._count = 0, 0

    def add(self, image: Image, counts: NDArray[np.bool_]) -> None:
        """Add the next frame (h, w, 3). counts: its pixels to include, (h, w) bool."""
        if len(self._held) == 2:
            (first, _), (middle, places) = self._held
            past, now, then = (frame[places].astype(np.int32) for frame in (first, middle, image))
            self._sum += int(np.abs(past - 2 * now + then).sum())
            self._count += now.size
        self._held.append((image, counts))

    def value(self) -> float | None:
        """Return the mean over all frames so far that have a previous and a next one."""
        return None if self._count == 0 else self._sum / self._count


def ssim_map(one: Tensor, other: Tensor) -> Tensor:
    """Return the similarity (h, w) at every pixel of two images (h, w), float32 from 0 to 255; borders are mirrored."""
    mean_one, mean_other, square_one, square_other, product = (
        gaussian_blur(plane, _RADIUS, _SIGMA) for plane in (one, other, one * one, other * other, one * other)
    )
    squares, means = mean_one * mean_one + mean_other * mean_other, mean_one * mean_other
    variances, covariance = square_one + square_other - squares, product - means
    return (2 * means + _C1) * (2 * covariance + _C2) / ((squares + _C1) * (variances + _C2))


def similarity_near(one: Image, other: Image, counts: NDArray[np.bool_]) -> tuple[Tensor, tuple[slice, slice]]:
    """Return `ssim_map` of two images (h, w, 3) for the rows and columns of the counted pixels, and these."""
    rows, columns = (_span(np.asarray(counts.any(axis=axis))) for axis in (1, 0))
    return ssim_map(*(_luma(image[rows, columns]) for image in (one, other))), (rows, columns)


def _span(holds: NDArray[np.bool_]) -> slice:
    """Return the slice from the first to the last True, widened by the window's radius."""
    places = np.nonzero(holds)[0]
    return slice(max(int(places[0]) - _RADIUS, 0), int(places[-1]) + _RADIUS + 1)


def _luma(image: Image) -> Tensor:
    """Convert an image (h, w, 3) to luma (h, w), float32 from 0 to 255."""
    return torch.from_numpy(image.astype(np.float32) @ LUMA)
