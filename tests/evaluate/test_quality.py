"""How far pictures are from one another: what the figures must do on pictures made for it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from lipstream.evaluate.lip_metrics import Correlation, MouthFinder
from lipstream.evaluate.quality import flicker, measure, psnr_db, ssim
from lipstream.face.detector import Face

Image = NDArray[np.uint8]


def pictures(count: int, height: int = 40, width: int = 48, seed: int = 0) -> list[Image]:
    """Noise that is smooth enough to have structure."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, height // 4, width // 4, 3))
    return list(np.repeat(np.repeat(coarse, 4, axis=1), 4, axis=2).astype(np.uint8))


def noisy(images: list[Image], deviation: float) -> list[Image]:
    rng = np.random.default_rng(1)
    return [(image + rng.normal(0, deviation, image.shape)).clip(0, 255).astype(np.uint8) for image in images]


def blurred(images: list[Image], times: int) -> list[Image]:
    for _ in range(times):
        images = [
            ((image.astype(int) + np.roll(image, 1, axis=0) + np.roll(image, 1, axis=1)) // 3) for image in images
        ]
    return [image.astype(np.uint8) for image in images]


def ssim_written_out(one: Image, other: Image, y: int, x: int) -> float:
    """The similarity at one inner pixel, by the formula."""
    taps = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    weight = np.outer(taps, taps) / taps.sum() ** 2
    window = (slice(y - 5, y + 6), slice(x - 5, x + 6))
    p, q = (image.astype(float)[window] @ [0.299, 0.587, 0.114] for image in (one, other))
    p_mean, q_mean = (weight * p).sum(), (weight * q).sum()
    p_variance, q_variance = (weight * (p - p_mean) ** 2).sum(), (weight * (q - q_mean) ** 2).sum()
    covariance = (weight * (p - p_mean) * (q - q_mean)).sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    likeness = (2 * p_mean * q_mean + c1) * (2 * covariance + c2)
    return float(likeness / ((p_mean**2 + q_mean**2 + c1) * (p_variance + q_variance + c2)))


def test_ssim_of_many_pixels_is_their_mean() -> None:
    (before,) = pictures(1)
    one, other = before.copy(), before.copy()
    other[12:25, 10:30] = noisy([before], 25)[0][12:25, 10:30]
    generated = np.argwhere((other != before).any(-1))
    expected = np.mean([ssim_written_out(one, other, y, x) for y, x in generated])
    assert ssim([one], [other], [before]) == pytest.approx(expected, abs=1e-4)
    # The rest of the frame does not matter, nor how much of it there is.
    wide = [np.pad(image, ((30, 7), (0, 40), (0, 0)), mode="wrap") for image in (one, other, before)]
    wide[1][30:70, 48:] = wide[0][30:70, 48:]
    wide[1][70:] = wide[0][70:]
    wide[1][:30] = wide[0][:30]
    assert ssim([wide[0]], [wide[1]], [wide[2]]) == pytest.approx(expected, abs=1e-4)


def test_ssim_is_one_for_equals_symmetric_and_falls() -> None:
    images = pictures(3)
    assert ssim(images, images) == 1
    assert ssim(images, images, images) is None
    other = noisy(images, 20)
    assert ssim(images, other) == ssim(other, images)
    for worse in ([noisy(images, level) for level in (0, 5, 20, 60)], [blurred(images, times) for times in range(4)]):
        found = [ssim(images, pictures) or 0.0 for pictures in worse]
        assert found == sorted(found, reverse=True)
        assert found[0] > 0.99 > 0.9 > found[-1]


def test_a_tolerance_leaves_out_what_compression_changed() -> None:
    (before,) = pictures(1)
    one = np.where(before > 128, before - 3, before + 3).astype(np.uint8)
    other = one.copy()
    other[8:20, 8:20] = 255 - before[8:20, 8:20]
    all_of_it, generated = psnr_db([one], [other], [before]), psnr_db([one], [other], [before], tolerance=8)
    assert all_of_it is not None
    assert generated is not None
    assert generated == pytest.approx(all_of_it - 10 * math.log10(40 * 48 / 144), abs=0.5)
    assert psnr_db([one], [one], [before], tolerance=3) is None


def test_videos_of_different_lengths_do_not_pass_for_equal() -> None:
    images = pictures(3)
    with pytest.raises(ValueError, match="shorter"):
        ssim(images, images[:2])
    with pytest.raises(ValueError, match="shorter"):
        psnr_db(images, images, images[:2])


def test_psnr_looks_at_generated_pixels_only() -> None:
    before = np.full((4, 4, 3), 100, np.uint8)
    one, other = before.copy(), before.copy()
    one[0, 0] = 200
    other[0, 0] = 190
    assert psnr_db([one], [other], [before]) == pytest.approx(20 * math.log10(255 / 10))
    assert psnr_db([one], [other]) == pytest.approx(20 * math.log10(255 / 10) + 10 * math.log10(16))
    assert psnr_db([one], [one], [before]) == math.inf
    assert psnr_db([before], [before], [before]) is None


def test_a_still_does_not_flicker() -> None:
    (image,) = pictures(1)
    everywhere = np.ones(image.shape[:2], np.bool_)
    assert flicker([image] * 4, [everywhere] * 4) == 0
    assert flicker([image] * 2, [everywhere] * 2) is None
    assert flicker([image] * 4, [~everywhere] * 4) is None
    # A light that goes on for one frame: 2 of 4 second differences of 10, one of 20, in the half that counts.
    bright = image // 2
    frames = [bright, bright, bright + 10, bright, bright]
    half = everywhere.copy()
    half[:, 24:] = False
    assert flicker(frames, [half] * 5) == pytest.approx((10 + 20 + 10) / 3)
    frames[2] = np.where(half[..., None], bright, bright + 10)
    assert flicker(frames, [half] * 5) == 0


def test_the_correlation_is_pearsons() -> None:
    x, y = np.random.default_rng(0).normal(1000, 0.1, (2, 50))
    found = Correlation()
    for pair in zip(x, y, strict=True):
        found.add(*map(float, pair))
    assert found.value() == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-6)
    still = Correlation()
    for value in x:
        still.add(float(value), 0.1)
    assert still.value() is None


class Detector:
    """Sees a face in every frame but those that are black."""

    name = "stand-in"

    def detect(self, image: Image) -> Face | None:
        return Face((0, 0, 200, 200), 1.0, np.array([[60.0, 60], [140, 60], [100, 110]])) if image.any() else None

    def detect_near(self, image: Image, held: Face) -> Face | None:
        return self.detect(image)

    def close(self) -> None:
        pass


class Finder(MouthFinder):
    """Reads a mouth that is as far open as the frame's first pixel says, of a face 100 high; none where that is 255."""

    def __init__(self) -> None:
        self.detector = Detector()

    def points(self, image: Image, affine_matrix: NDArray[np.float32]) -> NDArray[np.float64] | None:
        points = np.zeros((478, 2))
        points[152] = (0, 100)
        points[14] = (0, image[0, 0, 0])
        return None if image[0, 0, 0] == 255 else points


def test_frames_without_a_mouth_are_counted_and_left_out() -> None:
    def frame(opening: int) -> Image:
        return np.full((8, 8, 3), opening, np.uint8)

    reference = [frame(value) for value in (10, 20, 30, 0, 40, 50)]
    moved = [frame(value) for value in (12, 22, 32, 0, 255, 52)]
    quality = measure(reference, moved, reference, finder=Finder())
    assert (quality.frames, quality.frames_without_face) == (6, 2)
    assert quality.landmark_distance == pytest.approx(2 / 100 / 20)  # of twenty points one moved
    assert quality.opening_correlation == pytest.approx(1)
    assert measure(reference, moved).landmark_distance is None


def test_the_record_holds_what_the_functions_find() -> None:
    before = pictures(1) * 4
    one = noisy(before, 10)
    other = noisy(one, 5)
    quality = measure(one, other, before)
    assert quality.psnr_db == psnr_db(one, other, before)
    assert quality.ssim == ssim(one, other, before)
    assert quality.flicker is not None
    assert quality.reference_flicker is not None
    assert quality.flicker > quality.reference_flicker > 0
