"""A live session without a model: a drawn face whose mouth is as open as its sound is loud."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipstream.live.frames import LiveFrame

FRAME_RATE = Fraction(25)
SIDE = 128
MOUTH = (slice(80, 112), slice(40, 88))
"""The rows and columns that speech changes."""

AVATAR: Any = SimpleNamespace(width=SIDE, height=SIDE, frame_rate=FRAME_RATE, n_frames=50, model="tiny")


class DrawnSession:
    """Answers the calls of LiveSession. fails_after: frames after which its iteration raises `error`."""

    def __init__(
        self,
        sample_rate_hz: int = 16000,
        *,
        realtime: bool = True,
        error: Exception | None = None,
        fails_after: int = 0,
    ) -> None:
        self.sample_rate_hz, self.realtime, self.error, self.fails_after = sample_rate_hz, realtime, error, fails_after
        self.pushed: list[tuple[int, int, tuple[int, ...]]] = []  # sample rate, samples, shape
        self.n_interrupts = 0
        self.is_closed = False
        self._lock = threading.Lock()
        self._waiting: deque[NDArray[np.float32] | None] = deque()  # None: a segment ends
        self._n_frames = 0

    def __enter__(self) -> DrawnSession:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def push_audio(self, samples: NDArray[Any], sample_rate_hz: int) -> None:
        assert not self.is_closed
        self.pushed.append((sample_rate_hz, len(samples), samples.shape))
        values = samples.astype(np.float32) / (32768 if samples.dtype == np.int16 else 1)
        mono = values.mean(1) if values.ndim == 2 else values
        n_out = round(len(mono) * self.sample_rate_hz / sample_rate_hz)
        at = np.arange(n_out) * sample_rate_hz / self.sample_rate_hz
        with self._lock:
            self._waiting.append(np.interp(at, np.arange(len(mono)), mono).astype(np.float32))

    def end_segment(self) -> None:
        with self._lock:
            self._waiting.append(None)

    def interrupt(self) -> None:
        self.n_interrupts += 1
        with self._lock:
            self._waiting.clear()

    def close(self) -> None:
        self.is_closed = True

    def __iter__(self) -> Iterator[LiveFrame]:
        begun_s = time.perf_counter()
        while not self.is_closed:
            yield self._next()
            if self.realtime:
                time.sleep(max(0.0, begun_s + self._n_frames / float(FRAME_RATE) - time.perf_counter()))

    async def __aiter__(self) -> AsyncIterator[LiveFrame]:
        begun_s = time.perf_counter()
        while not self.is_closed:
            yield self._next()
            due_s = begun_s + self._n_frames / float(FRAME_RATE)
            await asyncio.sleep(max(0.0, due_s - time.perf_counter()) if self.realtime else 0.0)

    def _next(self) -> LiveFrame:
        if self.error is not None and self._n_frames >= self.fails_after:
            raise self.error
        n_samples = round(self.sample_rate_hz / FRAME_RATE)
        samples, is_speech, ends = np.zeros(n_samples, np.float32), False, False
        with self._lock:
            filled = 0
            while self._waiting and filled < n_samples and not ends:
                first, is_speech = self._waiting.popleft(), True
                if first is None:
                    ends = True
                    continue
                part = first[: n_samples - filled]
                samples[filled : filled + len(part)] = part
                filled += len(part)
                if len(part) < len(first):
                    self._waiting.appendleft(first[len(part) :])
            if self._waiting and self._waiting[0] is None and filled == n_samples:
                self._waiting.popleft()
                ends = True
        time_s = float(self._n_frames / FRAME_RATE)
        self._n_frames += 1
        return LiveFrame(drawn(np.abs(samples).max()), time_s, samples, self.sample_rate_hz, is_speech, ends)


def drawn(loudness: float) -> NDArray[np.uint8]:
    """Return a face: skin, two eyes, and a mouth that is dark as far as it is open."""
    picture = np.full((SIDE, SIDE, 3), (200, 150, 120), np.uint8)
    picture[40:52, 32:48] = picture[40:52, 80:96] = 30
    half_px = round(14 * min(1.0, float(loudness) * 2))
    picture[96 - half_px : 97 + half_px, 44:84] = (60, 10, 10)
    return picture


def tone(duration_s: float, sample_rate_hz: int, channels: int = 1) -> NDArray[np.int16]:
    """Return (n, channels) samples of a tone of 300 Hz."""
    at = np.arange(round(duration_s * sample_rate_hz)) / sample_rate_hz
    mono = (12000 * np.sin(2 * np.pi * 300 * at)).astype(np.int16)
    return np.repeat(mono[:, None], channels, axis=1)
