"""Read some of a video's frames, exactly those that reading it from its beginning gives, without doing so.

A `FrameIndex` made while the video was read once says which picture each frame shows, when, and what it looks like.
With it a segment is found by seeking, and every picture is checked; where a seek does not deliver them (see loop.py)
the video is decoded from its start.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from fractions import Fraction
from pathlib import Path

import av.error

from lipstream.media.loop import MAX_HELD_BYTES, FrameIndex, Stretches, cannot_be_read_again, n_bytes
from lipstream.media.picture import DecodedPicture
from lipstream.media.reader import Frame, VideoSource
from lipstream.settings import FRAME_RATE_HZ, Deinterlace, Loop

logger = logging.getLogger(__name__)


def read_indexed(
    path: Path,
    n_frames: int,
    index: FrameIndex,
    frame_rate: int | Fraction = FRAME_RATE_HZ,
    deinterlace: Deinterlace = "auto",
) -> Generator[Frame, None, None]:
    """Yield up to `n_frames` frames of a video, not looped, `frame_rate` a second, and add each to `index`.

    Raises InputError when the video cannot be used.
    """
    with VideoSource(path, deinterlace) as source, closing(source.at_rate(Fraction(frame_rate))) as pictures:
        for n, picture in enumerate(itertools.islice(pictures, n_frames)):
            shown = source.picture(picture.item)
            index.add(picture.item, shown)
            yield Frame(n, n, False, shown)


def source_frame(index: int, n_source: int, loop: Loop) -> int:
    """Return which of the `n_source` frames of a video a frame of the output shows; "trim" has no others to show."""
    if index < n_source or loop == "trim":
        return index
    if loop == "hold":
        return n_source - 1
    place = index % (2 * n_source)
    return min(place, 2 * n_source - 1 - place)


def read_segment(
    path: Path,
    known: FrameIndex,
    start: int,
    stop: int,
    loop: Loop,
    *,
    max_held_bytes: int = MAX_HELD_BYTES,
    deinterlace: Deinterlace = "auto",
) -> Generator[Frame, None, None]:
    """Yield frames start .. stop-1 of those that `read_looped` yields.

    known: of the frames of the video, of all where the segment goes past its end. Backwards, about `max_held_bytes` of
    decoded frames are held. Raises InputError when the video is not the one that was indexed.
    """
    n_source = len(known)
    with VideoSource(path, deinterlace) as source:
        n_held = max(1, max_held_bytes // n_bytes(next(source.pictures()).item.frame))
        pictures = _pictures(
            Stretches(source, known), [source_frame(i, n_source, loop) for i in range(start, stop)], n_held
        )
        with closing(pictures):
            for index, (source_index, picture) in zip(range(start, stop), pictures, strict=True):
                yield Frame(index, source_index, index >= n_source, picture)


def _pictures(
    stretches: Stretches, indices: Sequence[int], n_held: int
) -> Generator[tuple[int, DecodedPicture], None, None]:
    """Yield (source index, picture) of the indices in turn; no two pictures are the same object."""
    known, source = stretches.first_pass, stretches.source
    runs = list(_runs(indices))
    if len(runs) > 1 and len(known) <= n_held:  # a short clip, played several times
        pictures = stretches.load(min(indices), max(indices) + 1)
        for index in indices:
            yield index, source.picture(pictures[known.ordinals[index]])
        return
    for run in runs:
        if run[0] < run[-1] or len(run) == 1:
            yield from _forwards(stretches, run[0], run[-1] + 1)
            continue
        for part in _parts(run, n_held):
            pictures = stretches.load(part[-1], part[0] + 1)
            for index in part:
                yield index, source.picture(pictures[known.ordinals[index]])
            pictures.clear()  # before the next stretch is loaded


def _runs(indices: Sequence[int]) -> Iterator[list[int]]:
    """Split indices where they stop rising by one, falling by one or staying the same."""
    run: list[int] = []
    for index in indices:
        step = index - run[-1] if run else 0
        if run and (abs(step) > 1 or (len(run) > 1 and step != run[1] - run[0])):
            yield run
            run = []
        run.append(index)
    yield run


def _parts(run: list[int], n_held: int) -> Iterator[list[int]]:
    """Split a run that falls; one that stays the same shows one frame and is not split."""
    size = n_held if run[0] != run[-1] else len(run)
    return (run[begin : begin + size] for begin in range(0, len(run), size))


def _forwards(stretches: Stretches, start: int, stop: int) -> Generator[tuple[int, DecodedPicture], None, None]:
    """Yield source frames start .. stop-1 after a seek, from a longer way ahead where it fails, or from the start."""
    done = start
    for lead_s in stretches.leads_s:
        with closing(_after_seek(stretches, done, stop, lead_s)) as pictures:
            for picture in pictures:
                yield done, picture
                done += 1
        if done == stop:
            return
    path = stretches.source.path
    with (
        VideoSource(path, stretches.source.deinterlace) as source,
        closing(_from_start(source, stretches.first_pass, done, stop)) as pictures,
    ):
        for picture in pictures:
            yield done, picture
            done += 1
    if done < stop:
        raise cannot_be_read_again(path, done, stop)


def _after_seek(stretches: Stretches, start: int, stop: int, lead_s: int) -> Generator[DecodedPicture, None, None]:
    """Yield the pictures of source frames from `start` on, as long as they are what the index says."""
    known, source, at = stretches.first_pass, stretches.source, start
    try:
        source.seek(known.times[start] - int(lead_s / (source.stream.time_base or 1)))
    except (av.error.FFmpegError, OSError):
        return
    with closing(source.pictures()) as pictures:
        for picture in pictures:
            while at < stop and known.times[at] == picture.item.pts:
                shown = source.picture(picture.item)
                if shown.checksum() != known.checksums[at]:
                    return
                yield shown
                at += 1
            if at == stop or picture.item.pts > known.times[at]:
                return


def _from_start(source: VideoSource, known: FrameIndex, start: int, stop: int) -> Generator[DecodedPicture, None, None]:
    at, is_damaged = start, False
    with closing(source.pictures()) as pictures:
        for picture in pictures:
            while at < stop and known.ordinals[at] == picture.item.ordinal:
                shown = source.picture(picture.item)
                if shown.checksum() != known.checksums[at] and not is_damaged:
                    is_damaged = True
                    logger.warning("%s: damaged, it decodes differently each time", source.path)
                yield shown
                at += 1
            if at == stop:
                return
