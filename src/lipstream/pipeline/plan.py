"""Plan: the windows of a run, known before any is rendered, and the segments in which they are rendered."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from lipstream.pipeline.windows import batches, is_full

SEGMENT_S = 10.0
"""About how long a segment is, s: much longer than what beginning one costs, short enough to lose."""


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


def windows_of(has_face: Iterable[bool], num_frames: int) -> Iterator[PlannedWindow]:
    """Yield the windows that `windows.gather` makes of frames, given which of them have a face."""
    start = stop = faces = 0
    for one in has_face:
        stop += 1
        faces += one
        if is_full(stop - start, faces, num_frames):
            yield PlannedWindow(start, stop, faces)
            start, faces = stop, 0
    if stop > start:
        yield PlannedWindow(start, stop, faces)


def segments_of(has_face: Iterable[bool], num_frames: int, batch: int, segment_frames: int) -> tuple[Segment, ...]:
    """Return segments of at least `segment_frames` frames, but for the last, that end where a U-Net call ends.

    batch: windows per call. So a segment's windows and calls are those of a run from end to end.
    """
    segments, start = list[Segment](), 0
    stop = start
    for call in batches(windows_of(has_face, num_frames), batch):
        stop = call[-1].stop
        if stop - start >= segment_frames:
            segments.append(Segment(start, stop))
            start = stop
    if stop > start:
        segments.append(Segment(start, stop))
    return tuple(segments)
