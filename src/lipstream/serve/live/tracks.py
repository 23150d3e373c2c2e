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

    @property
    def n_waiting(self) -> int:
        """How many frames have been put in and not sent."""
        return len(self._frames)

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
        self._resampled = np.zeros(0, np.int16)  # that fills no packet yet
        self._n_out = 0

    def put(self, samples: NDArray[np.float32], sample_rate_hz: int) -> None:
        """Add (n,) float32 samples, full scale 1, at any rate."""
        if self._rate_hz != sample_rate_hz:
            self._finish()
            self._rate_hz, self._resampler = sample_rate_hz, AudioResampler("s16", "mono", SOUND_RATE_HZ)
        whole = np.rint(np.clip(samples, -1, 1) * 32767).astype(np.int16)
        frame = AudioFrame.from_ndarray(whole[None], format="s16", layout="mono")
        frame.sample_rate = sample_rate_hz
        self.time_s += Fraction(len(samples), sample_rate_hz)
        self._take(frame)
        while len(self._resampled) >= _PACKET_SAMPLES:
            packet = AudioFrame.from_ndarray(self._resampled[None, :_PACKET_SAMPLES], format="s16", layout="mono")
            packet.sample_rate = SOUND_RATE_HZ
            packet.pts, packet.time_base = self._n_out, Fraction(1, SOUND_RATE_HZ)
            self._resampled = self._resampled[_PACKET_SAMPLES:]
            self._n_out += _PACKET_SAMPLES
            self._add(packet)

    def _finish(self) -> None:
        """Take what the resampler still holds: exactly as long as what was put in, so that the pictures fit."""
        if self._resampler is not None:
            self._take(None)
            n_resampled = round(self.time_s * SOUND_RATE_HZ) - self._n_out
            missing = max(0, n_resampled - len(self._resampled))
            self._resampled = np.pad(self._resampled[:n_resampled], (0, missing))

    def _take(self, frame: AudioFrame | None) -> None:
        assert self._resampler is not None
        made = [one.to_ndarray()[0] for one in self._resampler.resample(frame)]
        self._resampled = np.concatenate([self._resampled, *made])
