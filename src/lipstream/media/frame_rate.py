"""Choose the source frames that a constant frame rate shows, by the rule of `ffmpeg -r 25`.

The published code converts every video to 25 fps by calling ffmpeg with `-r 25` and works on the result, so the choice
of frames decides which mouth goes with which sound. This is that program's present rule (fftools, "video_sync_process",
constant frame rate), checked against version 9.0: tests/test_media.py holds its choices. Up to 5.1 some frames were
chosen one later.

It is not "the nearest frame": a frame is dropped only when it lies more than 1.1 output frames in the past, so on a
faster source the output first follows frame by frame and then stays up to two frames behind.
"""

from __future__ import annotations

import statistics
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Generic, TypeVar

import numpy as np

T = TypeVar("T")

_STANDARD_HZ = (
    Fraction(25),
    Fraction(50),
    *(Fraction(n * 1000, divisor) for n in (24, 30, 60) for divisor in (1001, 1000)),
)
_ALIKE = Fraction(1, 3000)
_MISSING, _ABOUT = Fraction(39, 20), Fraction(99, 100)


@dataclass(frozen=True)
class Timed(Generic[T]):
    """An item with its time: `pts` and `duration` in units of `time_base` seconds."""

    item: T
    pts: int
    duration: int
    time_base: Fraction


def constant_rate(
    frames: Iterable[Timed[T]], frame_rate: Fraction, *, keep_initial_gap: bool
) -> Generator[Timed[T], None, None]:
    """Yield, for each output frame in turn, the source frame that it shows; holds two of them at most.

    `keep_initial_gap`: a first frame that starts late is repeated from time 0 on (what ffmpeg does when the file has
    other streams); otherwise the output starts with the first frame, whenever that is.
    """
    rule = _ConstantRate(frame_rate, keep_initial_gap)
    previous: Timed[T] | None = None
    for frame in frames:
        n_previous, n_all = rule.count(frame)
        for _ in range(min(n_previous, n_all)):
            yield previous or frame
        for _ in range(n_all - n_previous):
            yield frame
        previous = frame
    if previous is not None:
        for _ in range(rule.count_at_end()):
            yield previous


class _ConstantRate:
    def __init__(self, frame_rate: Fraction, keep_initial_gap: bool) -> None:
        self.frame_rate = frame_rate
        self.keep_initial_gap = keep_initial_gap
        self.next_index = 0
        self.n_emitted = 0
        self.repeats_of_previous = [0, 0, 0]
        # ffmpeg rounds times to this fraction of an output frame.
        extra_bits = min(16, max(0, 29 - (frame_rate.numerator.bit_length() - 1)))
        self.subdivision = 1 << extra_bits

    def count(self, frame: Timed[T]) -> tuple[int, int]:
        """Return how often to repeat the previous frame first, and how many output frames are due in all."""
        start = self._position(frame.pts * frame.time_base)
        duration = float(frame.duration * frame.time_base * self.frame_rate)
        drift = start - self.next_index
        end_drift = drift + duration
        if drift < 0 < end_drift:
            drift = 0.0
        if self.n_emitted == 0 and drift >= 0.5 and not self.keep_initial_gap:
            drift, end_drift = 0.0, duration
            self.next_index = round(start)

        n_previous, n_all = 0, 1
        if end_drift < -1.1:
            n_all = 0
        elif end_drift > 1.1:
            n_all = _round_single(end_drift)
            if drift > 1.1:
                n_previous = _round_single(drift - 0.6)
        self.repeats_of_previous = [n_previous, *self.repeats_of_previous[:2]]
        self.next_index += n_all
        self.n_emitted += n_all
        return n_previous, n_all

    def count_at_end(self) -> int:
        """Return how often to repeat the last frame after the end."""
        return int(statistics.median(self.repeats_of_previous))

    def _position(self, time_s: Fraction) -> float:
        """Return the time in output frames, rounded as ffmpeg does: never exactly half way between two."""
        ticks = round_half_away(time_s * self.frame_rate * self.subdivision)
        position = ticks / self.subdivision
        if ticks % self.subdivision:
            position += (1 if ticks > 0 else -1) / (1 << 17)
        return position


def nominal_rate(average: Fraction | None, base: Fraction | None) -> Fraction:
    """Return the frames per second at which every frame of a stream is shown about once, 0 where unknown.

    average: all frames over the whole length. base: libav's guess at the rate that all times are multiples of, which is
    believed where it is not twice as much (a raw stream's may be that of fields): then frames are missing somewhere.
    """
    if not average:
        return base or Fraction(0)
    rate = base if base and _ABOUT * average <= base <= _MISSING * average else average
    near = [standard for standard in _STANDARD_HZ if abs(rate / standard - 1) < _ALIKE]
    return near[0] if near else rate


def round_half_away(value: Fraction) -> int:
    """Round to the nearest integer, halves away from zero (libav's AV_ROUND_NEAR_INF)."""
    magnitude = int(abs(value) + Fraction(1, 2))
    return magnitude if value >= 0 else -magnitude


def _round_single(value: float) -> int:
    """Round in single precision, halves to even, as C's llrintf does."""
    return round(float(np.float32(value)))
