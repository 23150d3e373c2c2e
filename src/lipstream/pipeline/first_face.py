"""Find the first face of a video file, so that one without a face fails before anything is generated or encoded."""

from __future__ import annotations

import itertools
from collections.abc import Generator
from contextlib import closing
from fractions import Fraction
from pathlib import Path

from lipstream.errors import NoFaceError
from lipstream.face.detector import looks_at_parts
from lipstream.face.registry import Detector
from lipstream.media.reader import Frame, VideoInfo, read_frames
from lipstream.pipeline.clocks import StageClock
from lipstream.pipeline.threads import FrameBudget, ThreadGroup
from lipstream.settings import SyncSettings


def find_first_face(
    detector: Detector,
    video: VideoInfo,
    n_frames: int,
    settings: SyncSettings,
    clock: StageClock,
    threads: ThreadGroup,
    *,
    frame_rate: Fraction,
    n_threads: int,
    frames_in_flight: int,
) -> int:
    """Return the index of the first of `n_frames` frames with a face.

    The frames before it count as done for `clock`; the run itself searches the others. Raises NoFaceError when no
    frame has a face, or when the first has none and settings.no_face is "error".
    """
    n_searched = 0
    with closing(
        _searched(detector, video, n_frames, frame_rate, settings, clock, threads, n_threads, frames_in_flight)
    ) as searched:
        for has_face in searched:
            if has_face:
                return n_searched
            if settings.no_face == "error":
                raise no_face_in_frame(video.path, n_searched)
            clock.count(1)
            n_searched += 1
    raise no_face_in(video.path, n_searched)


def no_face_in(name: str | Path, n_searched: int, who: str | None = None) -> NoFaceError:
    """Return the error for a clip without any face, or without that of one person."""
    return NoFaceError(
        f"no usable face{f' ({who})' if who else ''} in the {n_searched} frames searched",
        file=name,
        fix="use a video with a face at least 50 px wide and 80 px high, turned towards the camera",
    )


def no_face_in_frame(name: str | Path, index: int) -> NoFaceError:
    """Return the error for a frame without a face where every frame has to have one."""
    return NoFaceError(
        f"no usable face in frame {index}", file=name, fix="leave out --no-face error to pass it through"
    )


def _searched(
    detector: Detector,
    video: VideoInfo,
    n_frames: int,
    frame_rate: Fraction,
    settings: SyncSettings,
    clock: StageClock,
    threads: ThreadGroup,
    n_threads: int,
    frames_in_flight: int,
) -> Generator[bool, None, None]:
    """Yield whether each frame of the source has a face: the first by itself, in most clips it has one."""

    def has_face(frame: Frame) -> bool:
        return detector.detect(frame.picture.view() if looks_at_parts(detector) else frame.image) is not None

    with threads.subgroup() as searching:
        frames = itertools.islice(read_frames(video.path, frame_rate, deinterlace=settings.deinterlace), n_frames)
        for first in itertools.islice(frames, 1):
            with clock.running(frames=0):
                found = has_face(first)
            del first
            yield found
        budget = FrameBudget(searching, frames_in_flight)
        for found in searching.ordered_map(has_face, budget.spend(frames), n_threads, clock, lambda _: 0):
            budget.give_back()
            yield found
