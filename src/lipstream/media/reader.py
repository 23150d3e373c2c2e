"""Read a video of any container and codec that libav knows: upright, in RGB, at a constant frame rate, streamed.

Frames come one at a time; only the decoder's own few frames are held. Looping, for speech longer than the video, is in
looping.py.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray

from lipstream.errors import InputError
from lipstream.media.color import ColorTags, tags_of_frame, to_rgb
from lipstream.media.container import decode, open_input
from lipstream.media.deinterlace import deinterlaced
from lipstream.media.frame_clock import FrameClock
from lipstream.media.frame_rate import Timed, constant_rate, nominal_rate, round_half_away
from lipstream.media.orientation import orientation
from lipstream.settings import FRAME_RATE_HZ, Deinterlace

_NO_TIMESTAMPS = 0x0080  # libav's AVFMT_NOTIMESTAMPS: the container (raw H.264, say) holds no times
_GUESS_TIMES = 0x0001  # libav's AVFMT_FLAG_GENPTS, which PyAV sets
_TOLERATED_LOSS_S = 0.5
_MOST_ASPECT = 4
_MOST_PIXELS = 8192 * 8192

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class VideoInfo:
    """Properties of a video, from its header and its first decoded frame.

    `width` and `height` are those of the upright picture in pixels. `rotation_deg` (0, 90, 180, 270, clockwise) and
    `mirrored` (left-right, before the rotation) are what the reader applies to the stored picture. `frame_rate` is the
    source's average in frames per second, 0 where unknown. `duration_s` is the picture's length by the file's header,
    None where it states none; other streams may be longer. `nominal_rate`: frames per second at which every frame is
    shown about once, 0 where unknown; with a variable rate, that of its quicker parts.
    """

    path: Path
    width: int
    height: int
    rotation_deg: int
    mirrored: bool
    frame_rate: Fraction
    duration_s: float | None
    sample_aspect_ratio: Fraction
    color: ColorTags
    nominal_rate: Fraction = Fraction(0)

    @property
    def pixel_aspect(self) -> float:
        """Width of a pixel over its height as shown; 1 where the file states something absurd."""
        aspect = float(self.sample_aspect_ratio)
        return aspect if 1 / _MOST_ASPECT <= aspect <= _MOST_ASPECT else 1.0


@dataclass(frozen=True)
class Frame:
    """One frame of the output. `image`: (height, width, 3) uint8 RGB, C-contiguous, the receiver's own copy.

    `index`: position in the output, from 0. `source_index`: position in the resampled source; looped passes repeat it.
    `is_repeat`: True from the second pass on, when the frame at `source_index` was yielded before.
    """

    index: int
    source_index: int
    is_repeat: bool
    image: NDArray[np.uint8]


class Picture(NamedTuple):
    """A decoded frame before conversion: its place in the order of decoding, its own time in stream units."""

    ordinal: int
    pts: int
    frame: VideoFrame


def probe(path: str | Path) -> VideoInfo:
    """Open a video and decode its first frame.

    Raises InputError when there is no such file or no frame in it.
    """
    with VideoSource(Path(path)) as source:
        next(source.pictures())
        return source.info


def read_frames(
    path: str | Path, frame_rate: int | Fraction = FRAME_RATE_HZ, deinterlace: Deinterlace = "auto"
) -> Iterator[Frame]:
    """Yield the video's frames at a constant rate: those that `ffmpeg -r 25` would show (see frame_rate.py).

    Raises InputError when the video cannot be used; a damaged part is skipped and logged.
    """
    with VideoSource(Path(path), deinterlace) as source:
        for index, picture in enumerate(source.at_rate(Fraction(frame_rate))):
            yield Frame(index, index, False, source.image(picture.item))


class VideoSource:
    """An open video file: yields its pictures in order, with times, and converts them to upright RGB."""

    info: VideoInfo

    def __init__(self, path: Path, deinterlace: Deinterlace = "auto") -> None:
        self.path, self.deinterlace = path, deinterlace
        self.container = open_input(path, "video")
        try:
            self.stream = _video_stream(path, self.container.streams.video)
        except BaseException:
            self.container.close()
            raise
        self.stream.thread_type = "AUTO"
        self.has_times = not self.container.format.flags & _NO_TIMESTAMPS
        # Times that a container does not hold are decoding times: libav's guess at the others takes every frame for one
        # that is shown as soon as it is decoded.
        self.container.flags &= ~_GUESS_TIMES
        self._lead = 0
        self._reformatter = VideoReformatter()

    def __enter__(self) -> VideoSource:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.container.close()

    def pictures(self) -> Generator[Timed[Picture], None, None]:
        """Decode from the container's position to the end; raises InputError if not one frame was ever decoded.

        A picture lasts until the next one's time; it is yielded when that is known.
        """
        clock = FrameClock(self.stream, self.has_times)
        start_s = Fraction(self.container.start_time or 0, 1_000_000)
        start_pts = round_half_away(start_s / clock.time_base)
        waiting: Picture | None = None
        for (ordinal, pts), frame in deinterlaced(self._decoded(clock), self.stream, self.deinterlace):
            picture = Picture(ordinal, pts, frame)
            if waiting is not None:
                yield Timed(waiting, waiting.pts - start_pts, picture.pts - waiting.pts, clock.time_base)
            waiting = picture
        if waiting is None:
            if not hasattr(self, "info"):
                raise InputError("no frame can be decoded, it is damaged", file=self.path, fix="export it again")
            return
        yield Timed(waiting, waiting.pts - start_pts, clock.last_duration(), clock.time_base)

    def _decoded(self, clock: FrameClock) -> Iterator[tuple[tuple[int, int], VideoFrame]]:
        """Yield ((ordinal, time), frame)."""
        for ordinal, frame in enumerate(decode(self.path, self.container, self.stream)):
            if not hasattr(self, "info"):
                self.info = _describe(self.path, self._duration_s(), self.stream, frame)
                self._lead = clock.lead(frame)
            yield (ordinal, clock.time(frame) - self._lead), frame

    def at_rate(self, frame_rate: Fraction) -> Generator[Timed[Picture], None, None]:
        """Yield the picture of each output frame in turn; a picture shown twice comes twice."""
        keep_initial_gap = len(self.container.streams) > 1
        last: Timed[Picture] | None = None
        for last in constant_rate(self.pictures(), frame_rate, keep_initial_gap=keep_initial_gap):
            yield last
        if last is not None and self.info.duration_s is not None:
            end_s = float((last.pts + last.duration) * last.time_base)
            stated_s = self.info.duration_s
            if end_s < stated_s - _TOLERATED_LOSS_S:
                logger.warning("%s: the picture ends at %.2f s, the file says %.2f s", self.path, end_s, stated_s)

    def seek(self, pts: int) -> None:
        """Go to the last key frame at or before `pts` (stream units), or where the container thinks it is."""
        self.container.seek(pts + self._lead, stream=self.stream, backward=True)

    def image(self, picture: Picture) -> NDArray[np.uint8]:
        """Convert a picture to what the viewer sees: (height, width, 3) uint8 RGB, C-contiguous, a copy."""
        is_turned = self.info.rotation_deg % 180 == 90
        width, height = self.info.width, self.info.height
        if is_turned:
            width, height = height, width
        image = to_rgb(picture.frame, self.info.color, width, height, self._reformatter)
        if self.info.mirrored:
            image = image[:, ::-1]
        return np.ascontiguousarray(np.rot90(image, -self.info.rotation_deg // 90))

    def _duration_s(self) -> float | None:
        """Return the picture's own length by the header: the file's is that of its longest stream."""
        if self.stream.duration and self.stream.time_base:
            return float(self.stream.duration * self.stream.time_base)
        own_s = _seconds(self.stream.metadata.get("DURATION", ""))  # Matroska has it in a tag
        if own_s is not None:
            return own_s
        is_alone = len(self.container.streams) == 1
        return self.container.duration / 1e6 if is_alone and self.container.duration else None


def _video_stream(path: Path, streams: tuple[VideoStream, ...]) -> VideoStream:
    """Return the file's main video: the largest picture that is not cover art."""
    videos = [stream for stream in streams if not stream.disposition & Disposition.attached_pic]
    if not videos:
        raise InputError("no video stream in it (cover art does not count)", file=path, fix="name a video file")
    best = max(videos, key=lambda s: (bool(s.disposition & Disposition.default), _n_pixels(s)))
    if best.codec_context is None:
        raise InputError("no decoder for its video codec here", file=path, fix="convert it to H.264 first")
    if _n_pixels(best) > _MOST_PIXELS:
        size = f"{best.width} x {best.height} px"
        raise InputError(
            f"its picture of {size} is too large", file=path, fix="make it smaller: 8192 x 8192 px at most"
        )
    return best


def _n_pixels(stream: VideoStream) -> int:
    return 0 if stream.codec_context is None else stream.width * stream.height


def _describe(path: Path, duration_s: float | None, stream: VideoStream, frame: VideoFrame) -> VideoInfo:
    rotation_deg, mirrored = orientation(path, frame)
    width, height = frame.width, frame.height
    aspect = stream.sample_aspect_ratio or Fraction(1)
    if rotation_deg % 180 == 90:
        width, height, aspect = height, width, 1 / aspect
    context = stream.codec_context
    return VideoInfo(
        path=path,
        width=width,
        height=height,
        rotation_deg=rotation_deg,
        mirrored=mirrored,
        frame_rate=stream.average_rate or Fraction(0),
        duration_s=duration_s,
        sample_aspect_ratio=aspect,
        color=tags_of_frame(frame, int(context.color_primaries), int(context.color_trc)),
        nominal_rate=nominal_rate(stream.average_rate, stream.base_rate),
    )


def _seconds(clock: str) -> float | None:
    """Parse "hours:minutes:seconds"; None for anything else."""
    match = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", clock)
    return None if match is None else 3600 * int(match[1]) + 60 * int(match[2]) + float(match[3])
