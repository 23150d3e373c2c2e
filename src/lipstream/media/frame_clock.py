"""Tell when each decoded frame is shown, also where the file does not say so or says what cannot be."""

from __future__ import annotations

from collections import deque
from fractions import Fraction

from av.video.frame import VideoFrame
from av.video.stream import VideoStream

_REORDERED = 17
"""Frames that a decoder may hold back, and one."""


class FrameClock:
    """Times of the frames that a decoder gives, in units of `time_base` seconds; each is later than the one before.

    Presentation times are believed as long as they run backwards no more often than decoding times do, as libav's own
    estimate ("best effort") believes them: AVI and some mp4 files hold decoding times only.
    """

    def __init__(self, stream: VideoStream, has_times: bool) -> None:
        """has_times: whether the container holds any."""
        self.time_base = stream.time_base or Fraction(1, 1000)
        self._stream, self._has_times = stream, has_times
        coded_rate, average_rate = stream.codec_context.framerate, stream.average_rate
        self._coded_duration = round(1 / coded_rate / self.time_base) if coded_rate else 0
        self._average_duration = round(1 / average_rate / self.time_base) if average_rate else 0
        self._last: int | None = None
        self._last_step = 0
        self._last_pts: int | None = None
        self._last_dts: int | None = None
        self._n_faulty_pts = self._n_faulty_dts = 0
        self._stated: deque[int] = deque(maxlen=_REORDERED)

    def lead(self, first: VideoFrame) -> int:
        """Return how much later than the stream's start its first frame was decoded, if that is all that is known."""
        if not self._has_times or first.pts is not None or first.dts is None or self._stream.start_time is None:
            return 0
        return first.dts - self._stream.start_time

    def time(self, frame: VideoFrame) -> int:
        """Return when a frame is shown."""
        stated = frame.duration or 0
        time = self._estimate(frame) if self._has_times else None
        if time is None or (self._last is not None and time <= self._last):
            time = 0 if self._last is None else self._last + self._step()
        self._stated.append(stated)
        self._last_step = 0 if self._last is None else time - self._last
        self._last = time
        return time

    def last_duration(self) -> int:
        """Return how long the frame lasts that turned out to be the last one.

        Where frames are reordered, a stated duration may belong to the step between two frames as they are stored: the
        stream's end by its header then says more.
        """
        stated = self._stated[-1]
        if not self._stream.codec_context.has_b_frames or self._last is None:
            return self._step() if stated <= 1 else stated
        start, duration = self._stream.start_time or 0, self._stream.duration or 0
        to_end = start + duration - self._last
        if 0 < to_end <= max(self._stated):
            return to_end
        return min(stated, self._step()) or self._step()

    def _estimate(self, frame: VideoFrame) -> int | None:
        pts, dts = frame.pts, frame.dts
        if dts is not None:
            self._n_faulty_dts += self._last_dts is not None and dts <= self._last_dts
        if pts is not None:
            self._n_faulty_pts += self._last_pts is not None and pts <= self._last_pts
        self._last_dts = _first_known(dts, pts, self._last_dts)
        self._last_pts = _first_known(pts, dts, self._last_pts)
        if pts is not None and (dts is None or self._n_faulty_pts <= self._n_faulty_dts):
            return pts
        return dts

    def _step(self) -> int:
        """Return the most likely time from one frame to the next."""
        stated = self._stated[-1] if self._stated else 0
        if not self._has_times and self._coded_duration:
            return self._coded_duration
        is_made_up = stated == 1 and self._last_step > 2
        if stated > 0 and self._has_times and not is_made_up:
            return stated
        return self._last_step or stated or self._coded_duration or self._average_duration or 1


def _first_known(*values: int | None) -> int | None:
    return next((value for value in values if value is not None), None)
