"""A live session's pictures and sound as WebRTC tracks, on one clock: that of the sound."""

from __future__ import annotations

import asyncio
from collections import deque
from fractions import Fraction
from typing import Any

import numpy as np
from aiortc import MediaStreamTrack
from aiortc.mediastreams import MediaStreamError
from av import AudioFrame, AudioResampler, VideoFrame
from numpy.typing import NDArray

SOUND_RATE_HZ = 48000
"""Opus has no other that would be as good."""

_PACKET_SAMPLES = 960  # 20 ms, what Opus sends in a packet
_VIDEO_TIME_BASE = Fraction(1, 90000)
_MOST_PICTURES = 5


class _Queued(MediaStreamTrack):
    """A track whose frames are put in as they are due."""

    def __init__(self, most: int | None = None) -> None:
        """Take how many frames may wait; with one more the oldest is dropped."""
        super().__init__()
        self._frames: deque[Any] = deque(maxlen=most)
        self._there = asyncio.Event()

    def _add(self, frame: VideoFrame | AudioFrame) -> None:
        if self.readyState == "live":
            self._frames.append(frame)
            self._there.set()

    def clear(self) -> None:
        """Throw away what has not been sent."""
        self._frames.clear()

    def stop(self) -> None:
        super().stop()
        self.clear()
        self._there.set()

    async def recv(self) -> Any:
        """Return the next frame. Raises MediaStreamError once the track has ended."""
        while self.readyState == "live":
            if self._frames:
                return self._frames.popleft()
            self._there.clear()
            await self._there.wait()
        raise MediaStreamError


class PictureTrack(_Queued):
    """The pictures. Where they cannot be encoded or sent in time, the oldest are dropped."""

    kind = "video"

    def __init__(self) -> None:
        super().__init__(_MOST_PICTURES)

    def put(self, picture: NDArray[np.uint8], time_s: Fraction) -> None:
        """Add a (height, width, 3) uint8 RGB picture, to be shown at a time of the track's clock."""
        frame = VideoFrame.from_ndarray(picture, format="rgb24")
        frame.pts, frame.time_base = round(time_s / _VIDEO_TIME_BASE), _VIDEO_TIME_BASE
        self._add(frame)


class SoundTrack(_Queued):
    """The sound, none of which is dropped while the track lives. time_s: how much was put in so far."""

    kind = "audio"

    def __init__(self) -> None:
        super().__init__()
        self.time_s = Fraction(0)
        self._rate_hz = 0
        self._resampler: AudioResampler | None = None
        self._n_out = 0

    def put(self, samples: NDArray[np.float32], sample_rate_hz: int) -> None:
        """Add (n,) float32 samples, full scale 1."""
        if self._resampler is None or self._rate_hz != sample_rate_hz:
            self._resampler = AudioResampler("s16", "mono", SOUND_RATE_HZ, frame_size=_PACKET_SAMPLES)
            self._rate_hz = sample_rate_hz
        whole = np.rint(np.clip(samples, -1, 1) * 32767).astype(np.int16)
        frame = AudioFrame.from_ndarray(whole[None], format="s16", layout="mono")
        frame.sample_rate = sample_rate_hz
        self.time_s += Fraction(len(samples), sample_rate_hz)
        for resampled in self._resampler.resample(frame):
            resampled.pts, resampled.time_base = self._n_out, Fraction(1, SOUND_RATE_HZ)
            self._n_out += resampled.samples
            self._add(resampled)
