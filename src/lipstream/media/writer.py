"""Write the result: one encode, the speech beside it, whole or not at all.

Everything goes to a hidden file beside the output, which takes the output's name only when it is complete; whatever
goes wrong before, that file is removed and an existing output is untouched. An output that is a symbolic link keeps
being one: the file that it points to is replaced.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Generator, Mapping
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av
import av.error
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from lipstream.encoding_settings import EncodingSettings
from lipstream.errors import OutputError
from lipstream.media.audio import SpeechInfo, read_planar
from lipstream.media.color import ColorTags, YuvColor, converted, to_yuv
from lipstream.media.encoder import PictureKind, add_picture_stream
from lipstream.media.origin import Origin
from lipstream.media.output_file import (
    CONTAINERS,
    check_output,
    create_hidden,
    forget,
    link_target,
    output_errors,
    rename_to_new,
)
from lipstream.media.picture import FilmedPicture, Picture, RgbPicture
from lipstream.media.pixel_format import YUV420P, Layout, frame_of
from lipstream.media.sound import Samples
from lipstream.media.source_tracks import SourceTracks, speech_language, tags_with
from lipstream.media.tone import codes_of, is_hdr

logger = logging.getLogger(__name__)

_AAC_RATES_HZ = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000, 7350)
_AAC_LAYOUTS = {"mono", "stereo", "2.1", "3.0", "4.0", "quad", "5.0", "5.0(side)", "5.1", "5.1(side)", "6.1", "7.1"}
_AAC_LAYOUT_OF_COUNT = ("mono", "stereo", "3.0", "4.0", "5.0", "5.1", "6.1", "7.1")


class VideoWriter:
    """Encode frames and the speech into one file; a context manager that leaves the whole file or nothing.

        with VideoWriter("out.mp4", width=720, height=1280, color=info.color, speech=speech, n_frames=n) as writer:
            for image in images:
                writer.write(image)

    The picture is encoded as `encoding` says, with the given colour tags; an odd width or height is padded by repeating
    the last column or row, which 4:2:0 needs. layout: of the pictures that will come. The speech is AAC at its own
    sample rate and channel count (the nearest rate AAC knows; beyond 8 channels, mono), cut or filled up with silence
    to the end of the video. `n_frames` is the most that will be written. `speech_samples`: the speech's samples where
    they are being read already (see SharedSpeech.planar); by default the recording is opened for them. source: the
    video whose tags, chapters, other sound tracks and subtitles are copied as far as the container takes them;
    `metadata`'s `comment` follows its own. origin: how the file was made, which it says in all ways that its container
    has.

    Raises OutputError at construction for an output that must not be written (see check_output), and from any method
    when writing fails (disk full, no permission).
    """

    def __init__(
        self,
        path: str | Path,
        *,
        width: int,
        height: int,
        frame_rate: int | Fraction = 25,
        color: ColorTags | None,
        speech: SpeechInfo | None,
        n_frames: int,
        speech_samples: Generator[Samples, None, None] | None = None,
        encoding: EncodingSettings = EncodingSettings(),  # noqa: B008 (frozen)
        layout: Layout = YUV420P,
        sample_aspect_ratio: Fraction = Fraction(1),
        overwrite: bool = False,
        metadata: Mapping[str, str] | None = None,
        source: Path | None = None,
        origin: Origin | None = None,
    ) -> None:
        self.path = Path(path)
        check_output(self.path, inputs=[speech.path] if speech else [], overwrite=overwrite)
        self.width, self.height = width, height
        self.frame_rate = Fraction(frame_rate)
        self.color = color or ColorTags()
        self.n_frames = n_frames
        self.n_written = 0
        self.overwrite = overwrite
        self._origin = origin
        self.encoding = encoding
        self._speech: _SpeechTrack | None = None
        self._copied: SourceTracks | None = None
        self._target = link_target(self.path)
        self._temporary = create_hidden(self.path, self._target)
        try:
            with output_errors(self.path):
                self._container = _open_container(self._temporary, CONTAINERS[self.path.suffix.lower()])
                self._video = self._add_video(
                    PictureKind(width, height, self.frame_rate, self.color, sample_aspect_ratio, layout)
                )
                if speech:
                    self._speech = _SpeechTrack(self._container, speech, speech_samples or read_planar(speech))
                if source:
                    self._copied = SourceTracks(source, self._container, self._video, n_frames / self.frame_rate)
                comment = self._copied.comment if self._copied else None
                self._container.metadata.update(tags_with(comment, _metadata(metadata, origin)))
        except BaseException:
            self._abandon()
            raise

    def _add_video(self, kind: PictureKind) -> VideoStream:
        return add_picture_stream(self._container, self.encoding, kind)

    def __enter__(self) -> VideoWriter:
        return self

    def write(self, picture: Picture | NDArray[np.uint8]) -> None:
        """Append one frame: a picture, or (height, width, 3) uint8 RGB. The speech up to its end goes with it."""
        if isinstance(picture, np.ndarray):
            if picture.shape != (self.height, self.width, 3) or picture.dtype != np.uint8:
                expected = f"({self.height}, {self.width}, 3) uint8"
                raise ValueError(f"frame {self.n_written}: {picture.shape} {picture.dtype} is not {expected}")
            picture = RgbPicture(picture)
        if (picture.height, picture.width) != (self.height, self.width):
            expected = f"{self.width}x{self.height}"
            raise ValueError(f"frame {self.n_written}: {picture.width}x{picture.height} is not {expected}")
        if self.n_written == self.n_frames:
            raise ValueError(f"frame {self.n_written}: n_frames is {self.n_frames}")
        frame = self._encodable(picture)
        frame.pts = self.n_written
        frame.time_base = 1 / self.frame_rate
        with output_errors(self.path):
            self._container.mux(self._video.encode(frame))
            self.n_written += 1
            if self._speech:
                self._speech.advance(self.n_written / self.frame_rate)
            if self._copied:
                self._copied.advance(self.n_written / self.frame_rate)

    def _encodable(self, picture: Picture) -> VideoFrame:
        """Return a new frame of even size in the format that the encoder takes."""
        pixel_format = self._video.codec_context.pix_fmt or "yuv420p"
        color = YuvColor.of(self.color, self.width, self.height)
        if isinstance(picture, FilmedPicture):
            return converted(frame_of(picture.planes, picture.layout), pixel_format, color)
        image = np.pad(picture.image(), ((0, self.height % 2), (0, self.width % 2), (0, 0)), mode="edge")
        return to_yuv(codes_of(image, color.transfer) if is_hdr(color.transfer) else image, pixel_format, color)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            self._abandon()
            return
        try:
            self._finish()
        except BaseException:
            self._abandon()
            raise

    def _finish(self) -> None:
        if self.n_written == 0:
            raise OutputError("there was no frame to write", file=self.path, fix="use a video with at least one frame")
        with output_errors(self.path):
            self._flush_video()
            if self._speech:
                self._speech.finish()
            if self._copied:
                self._copied.close()
            self._container.close()
            if self._origin:
                self._origin.mark(self._temporary, self.path, self._target)
            _to_disk(self._temporary)
            if self.overwrite:
                self._temporary.replace(self._target)
            else:
                rename_to_new(self._temporary, self._target)
        forget(self._temporary)

    def _flush_video(self) -> None:
        self._container.mux(self._video.encode(None))

    def discard(self) -> None:
        """Remove the unfinished file. For a thread other than the writing one, which it does not wait for."""
        self._temporary.unlink(missing_ok=True)
        forget(self._temporary)

    def _abandon(self) -> None:
        """Close the files and remove the hidden one, even where both fail.

        It is removed first: closing writes the rest of the file, and for mp4 all of it once more to bring the index to
        the front, which libav cannot do with a file that has no name.
        """
        with contextlib.suppress(OSError):  # Windows removes no open file
            self._temporary.unlink(missing_ok=True)
        try:
            for track in (self._speech, self._copied):
                if track:
                    track.close()
            container = getattr(self, "_container", None)
            if container is not None:
                with contextlib.suppress(av.error.FFmpegError, OSError):
                    container.close()
        finally:
            self.discard()


class _SpeechTrack:
    """The speech as an AAC stream, encoded as far as the video has come."""

    def __init__(self, container: OutputContainer, speech: SpeechInfo, blocks: Generator[Samples, None, None]) -> None:
        self.container = container
        self.speech = speech
        self.is_mixed_down = speech.channels > len(_AAC_LAYOUT_OF_COUNT)
        n_channels = 1 if self.is_mixed_down else speech.channels
        known = speech.layout in _AAC_LAYOUTS
        self.layout = speech.layout if known else _AAC_LAYOUT_OF_COUNT[n_channels - 1]
        rate_hz = min(_AAC_RATES_HZ, key=lambda rate: abs(rate - speech.sample_rate_hz))
        if rate_hz != speech.sample_rate_hz:
            logger.warning("%s: AAC has no %d Hz, writing %d Hz", speech.path, speech.sample_rate_hz, rate_hz)
        if self.is_mixed_down:
            logger.warning("%s: %d channels are more than AAC takes, writing mono", speech.path, speech.channels)
        self.stream: AudioStream = container.add_stream("aac", rate=rate_hz, layout=self.layout)
        self.stream.bit_rate = n_channels * min(128_000, 4 * rate_hz)
        language = speech_language(speech.path, speech.track)
        if language:
            self.stream.metadata["language"] = language
        self.blocks = blocks
        self.pending = np.zeros((n_channels, 0), np.float32)
        self.n_fed = 0

    def advance(self, time_s: Fraction) -> None:
        """Feed the encoder up to `time_s`; silence follows the end of the speech."""
        until = round(time_s * self.speech.sample_rate_hz)
        while self.n_fed < until:
            if self.pending.shape[1] == 0:
                self.pending = self._next_block(until - self.n_fed)
            n = min(self.pending.shape[1], until - self.n_fed)
            self._feed(self.pending[:, :n])
            self.pending = self.pending[:, n:]

    def finish(self) -> None:
        self.close()
        self.container.mux(self.stream.encode(None))

    def close(self) -> None:
        """Close the recording."""
        self.blocks.close()

    def _next_block(self, n_silent: int) -> NDArray[np.float32]:
        block = next(self.blocks, None)
        if block is None:
            return np.zeros((len(self.pending), n_silent), np.float32)
        return block.mean(0, keepdims=True) if self.is_mixed_down else block

    def _feed(self, samples: NDArray[np.float32]) -> None:
        frame = AudioFrame.from_ndarray(np.ascontiguousarray(samples), format="fltp", layout=self.layout)
        frame.sample_rate = self.speech.sample_rate_hz
        frame.time_base = Fraction(1, self.speech.sample_rate_hz)
        frame.pts = self.n_fed
        self.n_fed += samples.shape[1]
        self.container.mux(self.stream.encode(frame))


def _metadata(metadata: Mapping[str, str] | None, origin: Origin | None) -> dict[str, str]:
    return {**(metadata or {}), **({"comment": origin.comment} if origin else {})}


def _open_container(path: Path, container_format: str) -> OutputContainer:
    # The index goes to the front, so that a browser can start before it has the whole file.
    # A Matroska file would get a random number.
    options = {"fflags": "+bitexact"} if container_format == "matroska" else {"movflags": "+faststart"}
    return av.open(f"file:{path}", "w", format=container_format, options=options)


def _to_disk(path: Path) -> None:
    """Wait until a file's content is on the disk: a name that outlives a power cut must not lead to half of it."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
