"""Frames per second and time left of a run, for all that shows progress. Imports no torch."""

from __future__ import annotations


class Estimate:
    """Frames per second and time left, from all the frames written since the run began.

    The rate changes only when frames are written: a window's frames arrive together, and between two windows an
    estimate by the clock would sink and jump.
    """

    def __init__(self) -> None:
        self._begun_s: float | None = None
        self._n_before = self._seen = 0
        self._last: tuple[float, int] | None = None

    def add(self, frames: int, now_s: float) -> None:
        """Note how many frames are written at a time.

        The first call is the run's beginning, and so is one with fewer frames than before, when what was counted then
        (a search for faces) is over. Frames that are there at the beginning are of an earlier run.
        """
        if self._begun_s is None or frames < self._seen:
            self._begun_s, self._n_before, self._last = now_s, frames, None
        elif frames > self._seen:
            self._last = (now_s, frames)
        self._seen = frames

    @property
    def frames_per_s(self) -> float | None:
        """The rate, or None until a frame is written."""
        if self._begun_s is None or self._last is None or self._last[0] <= self._begun_s:
            return None
        return (self._last[1] - self._n_before) / (self._last[0] - self._begun_s)

    def left_s(self, n_frames: int, now_s: float) -> float | None:
        """Return the time left until `n_frames` are written, or None where it is not known yet."""
        rate = self.frames_per_s
        if rate is None or self._last is None:
            return None
        return max(0.0, (n_frames - self._last[1]) / rate - (now_s - self._last[0]))
