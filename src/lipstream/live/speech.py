"""The speech of a session as it comes in: segments of samples, cut into the frames that they are played with."""

from __future__ import annotations

import math
from bisect import bisect_left
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipstream.errors import InputError, SettingsError
from lipstream.media.audio import MODEL_SAMPLE_RATE_HZ, Resampler
from lipstream.media.sound import without_invalid

Samples = NDArray[np.float32]

_LOWEST_HZ, _HIGHEST_HZ = 8000, 192000
_MOST_CHANNELS = 64


def mono_of(samples: NDArray[Any]) -> Samples:
    """Return pushed samples as (n,) float32, of all channels the mean. Raises InputError for what is no sound."""
    array = np.asarray(samples)
    if array.dtype == np.int16:
        array = array.astype(np.float32) / np.float32(32768)
    if array.dtype.kind != "f":
        raise InputError(f"samples are {array.dtype}, not float32 or int16", fix="convert them")
    if array.ndim not in (1, 2) or (array.ndim == 2 and not 0 < array.shape[1] <= _MOST_CHANNELS):
        raise InputError(f"samples are {array.shape}, not (n,) or (n, channels)", fix="pass (n, channels)")
    if not array.size:
        return np.zeros(0, np.float32)
    planar = np.atleast_2d(array.astype(np.float32).T)
    valid, _ = without_invalid(planar)
    return np.ascontiguousarray(valid.mean(0), np.float32)


class Recording:
    """A recording that grows at its end and is forgotten from its start. Places are counted from its first sample."""

    def __init__(self) -> None:
        self._room = np.zeros(16000, np.float32)
        self._begin = self._end = 0  # of what is held, in the room
        self.first = 0  # place of the first sample that is held

    @property
    def stop(self) -> int:
        """Place after the last sample."""
        return self.first + self._end - self._begin

    def add(self, samples: Samples) -> None:
        """Add samples to the end."""
        if self._end + len(samples) > len(self._room):
            held = self._room[self._begin : self._end]
            self._room = np.zeros(2 * (len(held) + len(samples)), np.float32)
            self._room[: len(held)] = held
            self._begin, self._end = 0, len(held)
        self._room[self._end : self._end + len(samples)] = samples
        self._end += len(samples)

    def part(self, start: int, stop: int) -> Samples:
        """Return the samples from `start` to before `stop`, silence beyond the end."""
        assert start >= self.first
        offset = self._begin - self.first
        held = self._room[start + offset : min(stop + offset, self._end)]
        return np.pad(held, (0, stop - start - len(held)))

    def forget(self, before: int) -> None:
        """Let go of what lies before a place."""
        n = min(max(0, before - self.first), self._end - self._begin)
        self._begin, self.first = self._begin + n, self.first + n


class Segment:
    """Speech from its first sample to its end. look_ahead_s: how much after a frame has to be known to generate it."""

    def __init__(self, sample_rate_hz: int, frame_rate: Fraction, look_ahead_s: float) -> None:
        """Begin a segment. Raises SettingsError for a rate that is none."""
        if not _LOWEST_HZ <= sample_rate_hz <= _HIGHEST_HZ:
            raise SettingsError(
                f"sample_rate_hz = {sample_rate_hz}: must be from {_LOWEST_HZ} to {_HIGHEST_HZ}",
                setting="sample_rate_hz",
            )
        self.sample_rate_hz, self.is_ended = sample_rate_hz, False
        self._frame_rate, self._look_ahead = frame_rate, round(look_ahead_s * MODEL_SAMPLE_RATE_HZ)
        self._played = Recording()
        self.model_samples = Recording()  # at the model's rate
        self._resampler = Resampler(sample_rate_hz, MODEL_SAMPLE_RATE_HZ)
        self._arrivals: list[tuple[int, float]] = []  # samples at the model's rate, and when the last of them came

    def add(self, samples: Samples, now_s: float) -> None:
        """Add samples (n,)."""
        self._played.add(samples)
        for resampled in self._resampler.add(samples):
            self.model_samples.add(np.clip(resampled, -1.0, 1.0))
        self._arrivals.append((self.model_samples.stop, now_s))

    def end(self, now_s: float) -> None:
        """Say that nothing more comes."""
        self.model_samples.add(np.clip(self._resampler.end(), -1.0, 1.0))
        self.is_ended = True
        self._arrivals.append((2**62, now_s))

    @property
    def n_frames(self) -> int:
        """Number of frames that what is here lasts, the last one filled up with silence."""
        return math.ceil(self._played.stop * self._frame_rate / self.sample_rate_hz)

    def n_ready(self) -> int:
        """Return how many frames, from the first on, have all samples that generating them needs."""
        if self.is_ended:
            return self.n_frames
        known = self.model_samples.stop - self._look_ahead
        return max(0, math.floor(known * self._frame_rate / MODEL_SAMPLE_RATE_HZ))

    def arrived_s(self, frame: int) -> float:
        """Return when the last sample came that a frame needs, which is ready."""
        return self._arrivals[self._arrival(frame)][1]

    def samples(self, frame: int) -> Samples:
        """Return the samples that are played with a frame, at `sample_rate_hz`."""
        return self._played.part(self._sample(frame), self._sample(frame + 1))

    def forget(self, frame: int) -> None:
        """Let go of the samples of frames before `frame`, which have been played."""
        self._played.forget(self._sample(frame))
        del self._arrivals[: self._arrival(frame)]

    def _arrival(self, frame: int) -> int:
        needed = math.ceil((frame + 1) * MODEL_SAMPLE_RATE_HZ / self._frame_rate) + self._look_ahead
        return bisect_left(self._arrivals, (needed, -math.inf))

    def _sample(self, frame: int) -> int:
        return round(frame * self.sample_rate_hz / self._frame_rate)
