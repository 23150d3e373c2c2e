"""Yield more frames than a video has, for speech longer than it, without holding the video in memory.

To play a video backwards, short stretches of it are decoded: seek to the key frame before a stretch, decode it, yield
it in reverse. Every picture of a stretch is checked against the first pass, and a stretch that a seek did not deliver
faithfully (open groups of pictures, containers without an index) is decoded again from the start.
"""

from __future__ import annotations

import itertools
import logging
from array import array
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from fractions import Fraction
from functools import partial
from pathlib import Path

import av.error
from av.video.frame import VideoFrame

from lipstream.errors import InputError
from lipstream.media.again import from_the_start_again, slower
from lipstream.media.picture import DecodedPicture, Picture
from lipstream.media.reader import Decoded, Frame, VideoSource
from lipstream.settings import FRAME_RATE_HZ, Deinterlace, Loop

logger = logging.getLogger(__name__)

Opens = Callable[[], VideoSource]

_SEEK_LEADS_S = (0, 1, 5, 20)
"""How far before a stretch to seek; the later ones serve containers whose seeks land after the key frame."""

MAX_HELD_BYTES = 256 * 1024 * 1024

_MARGIN_S = 1
"""A video whose header states this much more than is needed is taken to be long enough."""


def read_looped(
    path: str | Path,
    n_frames: int,
    loop: Loop = "pingpong",
    frame_rate: int | Fraction = FRAME_RATE_HZ,
    *,
    max_held_bytes: int = MAX_HELD_BYTES,
    deinterlace: Deinterlace = "auto",
) -> Generator[Frame, None, None]:
    """Yield `n_frames` frames of a video at a constant rate, continuing past its end as `loop` says.

    "pingpong" plays it forwards, backwards, forwards and so on with both ends shown twice (the published order:
    0 .. n-1, n-1 .. 0, 0 .. n-1), "hold" repeats the last frame, "trim" stops at the video's end and yields fewer,
    "loop" begins again, with a short cross-fade, and "remap" spreads the video over all frames.
    Backwards, about `max_held_bytes` of decoded frames are held, or one frame where that is larger.

    Raises InputError when the video cannot be used, or has changed at a later pass.
    """
    frame_rate, opens = Fraction(frame_rate), partial(VideoSource, Path(path), deinterlace)
    if loop in ("loop", "remap"):
        yield from _lengthened(opens, n_frames, loop, frame_rate)
        return
    first_pass = FrameIndex()
    n_yielded = 0
    with opens() as source, closing(source.at_rate(frame_rate)) as pictures:
        for picture in pictures:
            if n_yielded == n_frames:
                return
            shown = source.picture(picture.item)
            if n_yielded == 0:
                is_recorded = loop == "pingpong" and not _is_long_enough(source, n_frames / frame_rate)
            if is_recorded:
                first_pass.add(picture.item, shown)
            yield Frame(n_yielded, n_yielded, False, shown)
            n_yielded += 1
        if loop == "hold" and n_yielded:
            for index in range(n_yielded, n_frames):
                yield Frame(index, n_yielded - 1, True, source.picture(picture.item))
    if loop != "pingpong" or not n_yielded:
        return
    if not is_recorded:
        first_pass = _record(opens, frame_rate, n_yielded)
    with closing(_replay(opens, frame_rate, first_pass, max_held_bytes)) as replay:
        for index in range(n_yielded, n_frames):
            source_index, shown = next(replay)
            yield Frame(index, source_index, True, shown)


def _lengthened(opens: Opens, n_frames: int, loop: Loop, frame_rate: Fraction) -> Iterator[Frame]:
    """Yield frames as "loop" or "remap" has them."""
    if loop == "loop":
        passes = from_the_start_again(
            _pictures(opens, frame_rate), lambda start: _pictures(opens, frame_rate, start), n_frames
        )
    else:
        n_source = min(n_frames, _count(opens, frame_rate, n_frames))
        passes = slower(_pictures(opens, frame_rate), n_source, n_frames)
    for index, (source_index, is_repeat, shown) in enumerate(itertools.islice(passes, n_frames)):
        yield Frame(index, source_index, is_repeat, shown)


def _pictures(opens: Opens, frame_rate: Fraction, start: int = 0) -> Iterator[Picture]:
    with opens() as source, closing(source.at_rate(frame_rate)) as pictures:
        for picture in itertools.islice(pictures, start, None):
            yield source.picture(picture.item)


def _count(opens: Opens, frame_rate: Fraction, most: int) -> int:
    """Return how many frames a video has, up to `most`, by decoding it."""
    with opens() as source, closing(source.at_rate(frame_rate)) as pictures:
        return sum(1 for _ in itertools.islice(pictures, most))


def _is_long_enough(source: VideoSource, needed_s: Fraction) -> bool:
    """Return whether the video is not expected to be read a second time, so that its checksums are not needed."""
    stated_s = source.info.duration_s
    return stated_s is not None and stated_s > needed_s + _MARGIN_S


def _record(opens: Opens, frame_rate: Fraction, n: int) -> FrameIndex:
    """Read a video once more that turned out shorter than its header states."""
    record = FrameIndex()
    with opens() as source, closing(source.at_rate(frame_rate)) as pictures:
        for picture in itertools.islice(pictures, n):
            record.add(picture.item, source.picture(picture.item))
    _refuse_fewer(source.path, len(record), n)
    return record


class FrameIndex:
    """Which picture each output frame of the first pass showed, its time and a checksum of its pixels (24 bytes).

    ordinals: in the order of decoding. times: in units of the stream's time base.
    """

    def __init__(self) -> None:
        self.ordinals = array("q")
        self.times = array("q")
        self.checksums = array("L")

    def __len__(self) -> int:
        return len(self.ordinals)

    def add(self, decoded: Decoded, picture: DecodedPicture) -> None:
        """Note which picture the next frame shows; `picture` is what `VideoSource.picture` makes of it."""
        self.ordinals.append(decoded.ordinal)
        self.times.append(decoded.pts)
        self.checksums.append(picture.checksum())

    def times_increase(self) -> bool:
        """Return whether no two pictures have the same time."""
        steps = itertools.pairwise(zip(self.ordinals, self.times, strict=True))
        return all(after > before or i == j for (i, before), (j, after) in steps)


def _replay(
    opens: Opens, frame_rate: Fraction, first_pass: FrameIndex, max_held_bytes: int
) -> Generator[tuple[int, DecodedPicture], None, None]:
    """Yield (source index, image) backwards, forwards, backwards and so on without end."""
    n = len(first_pass)
    with opens() as source:
        n_held = max(1, max_held_bytes // n_bytes(next(source.pictures()).item.frame))
        stretches = Stretches(source, first_pass)
        if n <= n_held:
            pictures = stretches.load(0, n)
            while True:
                for index in (*reversed(range(n)), *range(n)):
                    yield index, source.picture(pictures[first_pass.ordinals[index]])
        while True:
            for stop in range(n, 0, -n_held):
                start = max(0, stop - n_held)
                pictures = stretches.load(start, stop)
                for index in reversed(range(start, stop)):
                    yield index, source.picture(pictures[first_pass.ordinals[index]])
                pictures.clear()  # before the next stretch is loaded
            yield from _forwards(opens, frame_rate, n)


def _forwards(opens: Opens, frame_rate: Fraction, n: int) -> Iterator[tuple[int, DecodedPicture]]:
    n_read = 0
    with opens() as source, closing(source.at_rate(frame_rate)) as pictures:
        for picture in itertools.islice(pictures, n):
            yield n_read, source.picture(picture.item)
            n_read += 1
    _refuse_fewer(source.path, n_read, n)


def _refuse_fewer(path: Path, n_read: int, n: int) -> None:
    if n_read < n:
        raise InputError(
            "it ends earlier when read a second time", file=path, fix="leave the file unchanged during the run"
        )


def cannot_be_read_again(path: Path, start: int, stop: int) -> InputError:
    """Return the error of a video whose frames start .. stop-1 are not there at a later pass."""
    return InputError(
        f"frames {start} to {stop - 1} cannot be read a second time",
        file=path,
        fix="leave the file unchanged during the run",
    )


class Stretches:
    """Random access to a video by stretches of output frames. leads_s: how far ahead to seek, in turn; may be none."""

    def __init__(self, source: VideoSource, first_pass: FrameIndex) -> None:
        self.source = source
        self.first_pass = first_pass
        can_seek = source.has_times and first_pass.times_increase()
        self.leads_s = list(_SEEK_LEADS_S) if can_seek else []

    def load(self, start: int, stop: int) -> dict[int, Decoded]:
        """Decode the pictures of output frames start .. stop-1, by ordinal."""
        known = self.first_pass
        wanted = {known.times[i]: known.ordinals[i] for i in range(start, stop)}
        checksums = {known.ordinals[i]: known.checksums[i] for i in range(start, stop)}
        for i, lead_s in enumerate(self.leads_s):
            pictures = self._decode_by_time(wanted, lead_s)
            if self._checksums(self.source, pictures) == checksums:
                self.leads_s = self.leads_s[i:]  # shorter ones that failed here would fail again
                return pictures
        with VideoSource(self.source.path, self.source.deinterlace) as source:
            pictures = _decode_from_start(source, set(checksums))
            read_again = self._checksums(source, pictures)
        if read_again.keys() != checksums.keys():
            raise cannot_be_read_again(self.source.path, start, stop)
        if read_again != checksums:
            logger.warning("%s: damaged, it decodes differently each time", self.source.path)
        return pictures

    def _decode_by_time(self, wanted: dict[int, int], lead_s: int) -> dict[int, Decoded]:
        """Seek, and decode the pictures with the wanted times; whatever was found, by ordinal."""
        first, last = min(wanted), max(wanted)
        lead = int(lead_s / (self.source.stream.time_base or 1))
        found: dict[int, Decoded] = {}
        try:
            self.source.seek(first - lead)
        except (av.error.FFmpegError, OSError):
            return found
        with closing(self.source.pictures()) as pictures:
            for picture in pictures:
                pts = picture.item.pts
                if pts in wanted:
                    found[wanted[pts]] = picture.item
                if pts >= last or (pts > first and not found):
                    break
        return found

    def _checksums(self, source: VideoSource, pictures: dict[int, Decoded]) -> dict[int, int]:
        return {ordinal: source.picture(decoded).checksum() for ordinal, decoded in pictures.items()}


def _decode_from_start(source: VideoSource, wanted: set[int]) -> dict[int, Decoded]:
    found: dict[int, Decoded] = {}
    with closing(source.pictures()) as pictures:
        for picture in pictures:
            if picture.item.ordinal in wanted:
                found[picture.item.ordinal] = picture.item
            if len(found) == len(wanted):
                break
    return found


def n_bytes(frame: VideoFrame) -> int:
    """Return the size of a frame as decoded."""
    return sum(plane.buffer_size for plane in frame.planes)
