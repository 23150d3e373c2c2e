"""A live session without a model: a drawn face whose mouth is as open as its sound is loud."""

from __future__ import annotations

import asyncio
import importlib.util
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from fractions import Fraction
from pathlib import Path
from types import ModuleType, SimpleNamespace
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
    """Answers the calls of LiveSession: sound at the rate of its segment, in silence at the last one's.

    fails_after: frames after which its iteration raises `error`.
    """

    def __init__(self, *, realtime: bool = True, error: Exception | None = None, fails_after: int = 0) -> None:
        self.realtime, self.error, self.fails_after = realtime, error, fails_after
        self.pushed: list[tuple[int, tuple[int, ...]]] = []  # sample rate, shape
        self.n_interrupts = 0
        self.is_closed = False
        self._lock = threading.Lock()
        self._segments: deque[_Segment] = deque()
        self._rate_hz = 16000
        self._n_frames = 0

    def __enter__(self) -> DrawnSession:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def push_audio(self, samples: NDArray[Any], sample_rate_hz: int) -> None:
        assert not self.is_closed
        self.pushed.append((sample_rate_hz, samples.shape))
        values = samples.astype(np.float32) / (32768 if samples.dtype == np.int16 else 1)
        mono = values.mean(1) if values.ndim == 2 else values
        with self._lock:
            if not self._segments or self._segments[-1].is_ended:
                self._segments.append(_Segment(sample_rate_hz))
            segment = self._segments[-1]
            assert segment.rate_hz == sample_rate_hz
            segment.samples = np.concatenate([segment.samples, mono])

    def end_segment(self) -> None:
        with self._lock:
            if self._segments:
                self._segments[-1].is_ended = True

    def interrupt(self) -> None:
        self.n_interrupts += 1
        with self._lock:
            self._segments.clear()

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
        with self._lock:
            segment = self._segments[0] if self._segments else None
            self._rate_hz = self._rate_hz if segment is None else segment.rate_hz
            n_samples = round(self._rate_hz / FRAME_RATE)
            is_speech = segment is not None and (segment.is_ended or len(segment.samples) >= n_samples)
            samples, ends = np.zeros(n_samples, np.float32), False
            if segment is not None and is_speech:
                part = segment.samples[:n_samples]
                samples[: len(part)] = part
                segment.samples = segment.samples[n_samples:]
                ends = segment.is_ended and len(segment.samples) == 0
            if ends:
                self._segments.popleft()
        time_s = float(self._n_frames / FRAME_RATE)
        self._n_frames += 1
        return LiveFrame(drawn(np.abs(samples).max()), time_s, samples, self._rate_hz, is_speech, ends)


class _Segment:
    def __init__(self, rate_hz: int) -> None:
        self.rate_hz, self.samples, self.is_ended = rate_hz, np.zeros(0, np.float32), False


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


def load_plug(host: str) -> ModuleType:
    """Import the plug for a host, which lies beside the package."""
    name = f"lipstream_{host}"
    path = Path(__file__).parents[2] / "integrations" / host / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
