"""Plan: the windows of a run, known before any is rendered, and the segments in which they are rendered."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction

from lipstream.pipeline.windows import batches, is_full
from lipstream.settings import FRAME_RATE_HZ

SEGMENT_S = 10.0
"""About how long a segment is, s: much longer than what beginning one costs, short enough to lose."""


_SEGMENTS_EACH = 8
"""At least so many for each worker, so that the last ones end at about the same time."""


@dataclass(frozen=True)
class Segment:
    """Frames start .. stop-1 of the output: whole windows, rendered on their own."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def name(self) -> str:
        """Name of its piece, in order of the segments."""
        return f"{self.start:08}-{self.stop:08}.mp4"


@dataclass(frozen=True)
class PlannedWindow:
    """Frames start .. stop-1 of the output, which make a window; `faces` of them have a face."""

    start: int
    stop: int
    faces: int


def segment_frames(
    n_frames: int, workers: int, segment_s: float | None, frame_rate: int | Fraction = FRAME_RATE_HZ
) -> int:
    """Return about how many frames a segment is to have. segment_s: None for SEGMENT_S, or less for many workers."""
    if segment_s is not None:
        return max(1, round(segment_s * float(frame_rate)))
    longest = round(SEGMENT_S * float(frame_rate))
    return longest if workers == 1 else min(longest, max(1, n_frames // (_SEGMENTS_EACH * workers)))


def windows_of(
    has_face: Iterable[bool], num_frames: int, begins: Iterable[bool] = itertools.repeat(False)
) -> Iterator[PlannedWindow]:
    """Yield the windows that `windows.gather` makes of frames, given which have a face, and which begin a window."""
    start = stop = faces = 0
    for one, is_first in zip(has_face, begins, strict=False):
        if is_first and stop > start:
            yield PlannedWindow(start, stop, faces)
            start, faces = stop, 0
        stop += 1
        faces += one
        if is_full(stop - start, faces, num_frames):
            yield PlannedWindow(start, stop, faces)
            start, faces = stop, 0
    if stop > start:
        yield PlannedWindow(start, stop, faces)


def segments_of(
    has_face: Iterable[bool],
    num_frames: int,
    batch: int,
    at_least: int,
    begins: Iterable[bool] = itertools.repeat(False),
) -> tuple[Segment, ...]:
    """Return segments of `at_least` frames, but for the last, that end where a U-Net call ends.

    batch: windows per call. So a segment's windows and calls are those of a run from end to end.
    """
    segments, start = list[Segment](), 0
    stop = start
    for call in batches(windows_of(has_face, num_frames, begins), batch):
        stop = call[-1].stop
        if stop - start >= at_least:
            segments.append(Segment(start, stop))
            start = stop
    if stop > start:
        segments.append(Segment(start, stop))
    return tuple(segments)
