"""Which faces each frame shows: searched for in threads, in the whole picture or round the places known already."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial

from lipstream.face.detector import Face, looks_at_parts
from lipstream.face.keyframes import Segment, faces_in
from lipstream.face.people import candidates_of
from lipstream.face.registry import Detector
from lipstream.face.shots import coarse_picture
from lipstream.media.reader import Frame
from lipstream.pipeline.clocks import StageClock
from lipstream.pipeline.records import Components
from lipstream.pipeline.threads import ThreadGroup
from lipstream.pipeline.track import Seen
from lipstream.settings import SyncSettings


def seen_faces(
    components: Components,
    frames: Iterable[Frame],
    settings: SyncSettings,
    model_departs: bool,
    first_face: int,
    clock: StageClock,
    threads: ThreadGroup,
) -> Iterator[Seen]:
    """Yield frames with the faces that they show. first_face: see Clip."""
    follows = settings.follows(model_departs)
    segments = _segments(frames, settings.frames_per_detection(), first_face, finds_all=follows)
    detect, n_new = partial(_detect, components.detector, follows), partial(_n_new, first_face=first_face)
    return threads.ordered_map(detect, segments, components.threads, clock, n_new)


def _segments(
    frames: Iterable[Frame], detect_every: int, first_face: int, *, finds_all: bool
) -> Iterator[tuple[Frame, Segment | None, bool]]:
    """Yield frames with the segment of `detect_every` that each belongs to, and whether it is to be searched.

    A segment that begins before the first face has no face to go by: None.
    """
    segment = None
    for frame in frames:
        index = frame.source_index
        if index % detect_every == 0:
            segment = Segment(index, finds_all=finds_all) if index >= first_face else None
        yield frame, segment, not frame.is_repeat and index >= first_face


def _n_new(item: tuple[Frame, Segment | None, bool], first_face: int) -> int:
    """Count a frame of `_segments` unless `find_first_face` has counted it."""
    frame, _, _ = item
    return int(frame.index >= first_face)


def _detect(detector: Detector, finds_all: bool, item: tuple[Frame, Segment | None, bool]) -> Seen:
    """Return a frame with its faces; those of a repeated frame are known already."""
    frame, segment, is_searched = item
    image = frame.picture.view() if looks_at_parts(detector) else frame.image
    faces = list[Face]()
    if is_searched and segment is None:
        faces = faces_in(detector, image, finds_all=finds_all)
    elif is_searched and segment is not None:
        faces = segment.find(detector, frame.source_index, image)
    return Seen(frame, candidates_of(image, faces), coarse_picture(image) if finds_all else None)
