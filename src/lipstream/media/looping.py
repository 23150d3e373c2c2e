"""More frames than the video has: for speech that outlasts the picture, without holding the video in memory.

Played backwards, a video is decoded in short stretches: seek to the key frame before a stretch, decode it, hand it out
in reverse. Every picture handed out in reverse is checked against what the first pass saw, and a stretch that a seek
did not deliver faithfully (open groups of pictures, containers without an index) is decoded again from the start.
"""

from __future__ import annotations

import itertools
import logging
import zlib
from array import array
from collections.abc import Generator, Iterator
from contextlib import closing
from fractions import Fraction
from pathlib import Path

import av.error
import numpy as np
from numpy.typing import NDArray

from lipstream.errors import InputError
from lipstream.media.reader import Frame, VideoSource
from lipstream.settings import FRAME_RATE_HZ, Loop

logger = logging.getLogger(__name__)

_SEEK_LEADS_S = (0, 1, 5, 20)
"""How far before a stretch to seek; the later ones serve containers whose seeks land after the key frame."""

MAX_HELD_FRAMES = 32
MAX_HELD_BYTES = 128 * 1024 * 1024


def read_looped(
    path: str | Path,
    n_frames: int,
    loop: Loop = "pingpong",
    frame_rate: int | Fraction = FRAME_RATE_HZ,
    *,
    max_held_frames: int = MAX_HELD_FRAMES,
) -> Iterator[Frame]:
    """Yield `n_frames` frames of a video at a constant rate, going on past its end as `loop` says.

    "pingpong" plays it forwards, backwards, forwards and so on with both ends shown twice (the published order:
    0 .. n-1, n-1 .. 0, 0 .. n-1), "hold" repeats the last frame, "trim" stops at the video's end and yields fewer.
    Holds at most `max_held_frames` images and about MAX_HELD_BYTES at a time.

    Raises InputError when the video cannot be used, or is no longer the same at a later pass.
    """
    path, frame_rate = Path(path), Fraction(frame_rate)
    seen = _Seen()
    n_seen, n_bytes = 0, 1
    with VideoSource(path) as source, closing(source.at_rate(frame_rate)) as pictures:
        for picture in pictures:
            if n_seen == n_frames:
                return
            image = source.image(picture.item)
            n_bytes = image.nbytes
            if loop == "pingpong":
                seen.add(picture.item.ordinal, picture.item.pts, image)
            yield Frame(n_seen, n_seen, False, image)
            n_seen += 1
        if loop == "hold" and n_seen:
            # Converted anew: what was handed out is the receiver's, who may have painted on it.
            held = source.image(picture.item)
            for index in range(n_seen, n_frames):
                yield Frame(index, n_seen - 1, True, held.copy())
    if loop != "pingpong" or not n_seen:
        return
    n_held = max(1, min(max_held_frames, MAX_HELD_BYTES // n_bytes))
    with closing(_replay(path, frame_rate, seen, n_held)) as replay:
        for index in range(n_seen, n_frames):
            source_index, image = next(replay)
            yield Frame(index, source_index, True, image)


class _Seen:
    """What the first pass saw, 20 bytes an output frame: which picture, its time, a checksum of its pixels."""

    def __init__(self) -> None:
        self.ordinals = array("q")
        self.times = array("q")
        self.checksums = array("L")

    def __len__(self) -> int:
        return len(self.ordinals)

    def add(self, ordinal: int, pts: int, image: NDArray[np.uint8]) -> None:
        self.ordinals.append(ordinal)
        self.times.append(pts)
        self.checksums.append(_checksum(image))

    def times_increase(self) -> bool:
        """Whether a picture's time tells it from all others."""
        steps = itertools.pairwise(zip(self.ordinals, self.times, strict=True))
        return all(after > before or i == j for (i, before), (j, after) in steps)


def _replay(
    path: Path, frame_rate: Fraction, seen: _Seen, n_held: int
) -> Generator[tuple[int, NDArray[np.uint8]], None, None]:
    """Backwards, forwards, backwards ... for ever: (source index, image)."""
    n = len(seen)
    with VideoSource(path) as source:
        next(source.pictures())
        stretches = _Stretches(source, seen)
        if n <= n_held:
            images = stretches.load(0, n)
            while True:
                for index in (*reversed(range(n)), *range(n)):
                    yield index, images[seen.ordinals[index]].copy()
        while True:
            for stop in range(n, 0, -n_held):
                start = max(0, stop - n_held)
                images = stretches.load(start, stop)
                for index in reversed(range(start, stop)):
                    ordinal = seen.ordinals[index]
                    is_last_use = index == start or seen.ordinals[index - 1] != ordinal
                    # Taken out of the dict, so that this stretch is gone when the next is loaded.
                    yield index, images.pop(ordinal) if is_last_use else images[ordinal].copy()
            yield from _forwards(path, frame_rate, n)


def _forwards(path: Path, frame_rate: Fraction, n: int) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    with VideoSource(path) as source, closing(source.at_rate(frame_rate)) as pictures:
        index = -1
        for index, picture in enumerate(itertools.islice(pictures, n)):
            yield index, source.image(picture.item)
    if index + 1 < n:
        raise InputError(f"{path}: ends earlier when read a second time; do not change it during the run")


class _Stretches:
    """Random access to a video by stretches of output frames."""

    def __init__(self, source: VideoSource, seen: _Seen) -> None:
        self.source = source
        self.seen = seen
        can_seek = source.has_times and seen.times_increase()
        self.leads_s = list(_SEEK_LEADS_S) if can_seek else []

    def load(self, start: int, stop: int) -> dict[int, NDArray[np.uint8]]:
        """The images of output frames start .. stop-1, by the ordinals of their pictures."""
        seen = self.seen
        wanted = {seen.times[i]: seen.ordinals[i] for i in range(start, stop)}
        checksums = {seen.ordinals[i]: seen.checksums[i] for i in range(start, stop)}
        for i, lead_s in enumerate(self.leads_s):
            images = self._decode_by_time(wanted, lead_s)
            if {ordinal: _checksum(image) for ordinal, image in images.items()} == checksums:
                self.leads_s = self.leads_s[i:]  # shorter ones that failed here would fail again
                return images
        images = self._decode_from_start(set(checksums))
        if images.keys() != checksums.keys():
            raise InputError(f"{self.source.path}: frames {start} to {stop - 1} cannot be read a second time")
        if any(_checksum(image) != checksums[ordinal] for ordinal, image in images.items()):
            logger.warning("%s: damaged, it decodes differently each time", self.source.path)
        return images

    def _decode_by_time(self, wanted: dict[int, int], lead_s: int) -> dict[int, NDArray[np.uint8]]:
        """Seek, and decode the pictures with the wanted times; whatever was found, by ordinal."""
        first, last = min(wanted), max(wanted)
        lead = int(lead_s / (self.source.stream.time_base or 1))
        images: dict[int, NDArray[np.uint8]] = {}
        try:
            self.source.seek(first - lead)
        except (av.error.FFmpegError, OSError):
            return images
        with closing(self.source.pictures()) as pictures:
            for picture in pictures:
                pts = picture.item.pts
                if pts in wanted:
                    images[wanted[pts]] = self.source.image(picture.item)
                if pts >= last or (pts > first and not images):
                    break
        return images

    def _decode_from_start(self, wanted: set[int]) -> dict[int, NDArray[np.uint8]]:
        images: dict[int, NDArray[np.uint8]] = {}
        with VideoSource(self.source.path) as source, closing(source.pictures()) as pictures:
            for picture in pictures:
                if picture.item.ordinal in wanted:
                    images[picture.item.ordinal] = source.image(picture.item)
                if len(images) == len(wanted):
                    break
        return images


def _checksum(image: NDArray[np.uint8]) -> int:
    """CRC of every fourth row: enough to tell a wrongly decoded picture, cheap beside decoding one."""
    return zlib.crc32(image[::4].tobytes())
