"""Read a video of any container and codec that libav knows: upright, at a constant frame rate, streamed.

Frames come one at a time; only the decoder's own few frames are held. Pictures keep the samples that were decoded (see
picture.py). Looping, for speech longer than the video, is in loop.py.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from lipstream.errors import InputError
from lipstream.media.color import ColorTags, YuvColor, converted, tags_of_frame, to_rgb, to_yuv
from lipstream.media.container import decode, open_input
from lipstream.media.deinterlace import deinterlaced
from lipstream.media.frame_clock import FrameClock
from lipstream.media.frame_rate import Timed, constant_rate, nominal_rate, round_half_away
from lipstream.media.orientation import orientation
from lipstream.media.picture import DecodedPicture, FilmedPicture, Picture, RgbPicture
from lipstream.media.pixel_format import YUV420P, Layout, is_kept_as_rgb, kept_layout, layout_of, planes_of
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
    shown about once, 0 where unknown; with a variable rate, that of its quicker parts. `layout`: of
    the samples that the reader gives. `is_rgb`: it gives RGB, as it does for RGB and grey; `layout` is what to encode.
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
    layout: Layout = YUV420P
    is_rgb: bool = False

    @property
    def picture_bytes(self) -> int:
        """Size of a picture in memory."""
        return 3 * self.width * self.height if self.is_rgb else self.layout.n_bytes(self.width, self.height)

    @property
    def pixel_aspect(self) -> float:
        """Width of a pixel over its height as shown; 1 where the file states something absurd."""
        aspect = float(self.sample_aspect_ratio)
        return aspect if 1 / _MOST_ASPECT <= aspect <= _MOST_ASPECT else 1.0


@dataclass(frozen=True)
class Frame:
    """One frame of the output. `picture`: the receiver's own.

    `index`: position in the output, from 0. `source_index`: position in the resampled source; looped passes repeat it.
    `is_repeat`: True from the second pass on, when the frame at `source_index` was yielded before.
    """

    index: int
    source_index: int
    is_repeat: bool
    picture: Picture

    @property
    def image(self) -> NDArray[np.uint8]:
        """The whole picture as (height, width, 3) uint8 RGB; a filmed one is converted at each call."""
        return self.picture.image()


class Decoded(NamedTuple):
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
            yield Frame(index, index, False, source.picture(picture.item))


class VideoSource:
    """An open video file: yields its pictures in order, with times, and turns them upright."""

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

    def __enter__(self) -> VideoSource:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.container.close()

    def pictures(self) -> Generator[Timed[Decoded], None, None]:
        """Decode from the container's position to the end; raises InputError if not one frame was ever decoded.

        A picture lasts until the next one's time; it is yielded when that is known.
        """
        clock = FrameClock(self.stream, self.has_times)
        start_s = Fraction(self.container.start_time or 0, 1_000_000)
        start_pts = round_half_away(start_s / clock.time_base)
        waiting: Decoded | None = None
        for (ordinal, pts), frame in deinterlaced(self._decoded(clock), self.stream, self.deinterlace):
            picture = Decoded(ordinal, pts, frame)
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
                self.info = _describe(self.path, self._duration_s(), self.stream, frame, is_photo=self._is_photo())
                self._lead = clock.lead(frame)
            yield (ordinal, clock.time(frame) - self._lead), frame

    def at_rate(self, frame_rate: Fraction) -> Generator[Timed[Decoded], None, None]:
        """Yield the picture of each output frame in turn; a picture shown twice comes twice."""
        keep_initial_gap = len(self.container.streams) > 1
        last: Timed[Decoded] | None = None
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

    def picture(self, decoded: Decoded) -> DecodedPicture:
        """Return what the viewer sees, upright, in memory of its own: the decoder's is needed for other pictures."""
        info, frame = self.info, decoded.frame
        color = YuvColor.of(info.color, info.width, info.height)
        is_turned = info.rotation_deg % 180 == 90
        width, height = (info.height, info.width) if is_turned else (info.width, info.height)
        if info.is_rgb:
            return RgbPicture(self._upright(to_rgb(frame, color, width, height)))
        if layout_of(frame.format.name) != info.layout or (frame.width, frame.height) != (width, height):
            frame = converted(frame, info.layout.name, color, width, height)
        elif any(plane.line_size < 0 for plane in frame.planes):  # stored from the bottom up
            frame = to_yuv(to_rgb(frame, color), info.layout.name, color)
        planes = tuple(self._upright(plane) for plane in planes_of(frame, info.layout))
        return FilmedPicture(planes, info.layout, color)

    def _upright(self, pixels: NDArray[Any]) -> NDArray[Any]:
        """Return a copy of pixels, turned."""
        if self.info.mirrored:
            pixels = pixels[:, ::-1]
        return np.array(np.rot90(pixels, -self.info.rotation_deg // 90), order="C")

    def _is_photo(self) -> bool:
        name = self.container.format.name
        return name.endswith("_pipe") or name == "image2"

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


def _describe(
    path: Path, duration_s: float | None, stream: VideoStream, frame: VideoFrame, *, is_photo: bool
) -> VideoInfo:
    rotation_deg, mirrored = orientation(path, frame)
    width, height = frame.width, frame.height
    aspect = stream.sample_aspect_ratio or Fraction(1)
    if rotation_deg % 180 == 90:
        width, height, aspect = height, width, 1 / aspect
    context = stream.codec_context
    # A film made of a photo is to play everywhere, whatever the photo's format.
    layout = YUV420P if is_photo else kept_layout(frame.format, is_turned=rotation_deg % 180 == 90)
    if layout_of(frame.format.name) != layout:
        logger.info("%s: pictures in %s become %s", path, frame.format.name, layout.name)
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
        layout=layout,
        is_rgb=is_kept_as_rgb(frame.format),
    )


def _seconds(clock: str) -> float | None:
    """Parse "hours:minutes:seconds"; None for anything else."""
    match = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", clock)
    return None if match is None else 3600 * int(match[1]) + 60 * int(match[2]) + float(match[3])
