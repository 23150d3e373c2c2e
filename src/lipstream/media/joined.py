"""Write an output from pieces that are encoded already: their packets are copied, the speech is encoded beside them."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import av.error
from av.container import InputContainer
from av.video.stream import VideoStream

from lipstream.errors import OutputError
from lipstream.media.audio import SpeechInfo
from lipstream.media.encoder import PictureKind
from lipstream.media.origin import Origin
from lipstream.media.output_file import output_errors
from lipstream.media.sound import Samples
from lipstream.media.writer import VideoWriter


def n_packets(piece: Path) -> int:
    """Return how many frames a piece holds, without decoding them; 0 for a file that is none."""
    try:
        with _opened(piece) as container:
            return sum(packet.size > 0 for packet in container.demux(container.streams.video[0]))
    except (OutputError, av.error.FFmpegError, IndexError):
        return 0


class JoinedWriter(VideoWriter):
    """A VideoWriter that takes whole pieces in place of frames, all encoded with the same settings.

    like: one of the pieces, whose stream the output's is a copy of. The other arguments: as of VideoWriter.
    """

    def __init__(
        self,
        path: str | Path,
        like: Path,
        *,
        width: int,
        height: int,
        frame_rate: int | Fraction,
        speech: SpeechInfo,
        n_frames: int,
        speech_samples: Generator[Samples, None, None] | None = None,
        overwrite: bool = False,
        source: Path | None = None,
        origin: Origin | None = None,
    ) -> None:
        self._like = like
        super().__init__(
            path,
            width=width,
            height=height,
            frame_rate=frame_rate,
            color=None,
            speech=speech,
            n_frames=n_frames,
            speech_samples=speech_samples,
            overwrite=overwrite,
            source=source,
            origin=origin,
        )

    def _add_video(self, kind: PictureKind) -> VideoStream:
        with _opened(self._like) as container:
            like = container.streams.video[0]
            stream = self._container.add_stream_from_template(like, opaque=True)  # for AV1, libav has another decoder
            if self._container.format.name != "matroska":
                stream.codec_context.codec_tag = like.codec_context.codec_tag
            return stream

    def __enter__(self) -> JoinedWriter:
        return self

    def append(self, piece: Path) -> int:
        """Append a piece, and the speech up to its end; return its number of frames. Raises OutputError."""
        begun = self.n_written
        with _opened(piece) as container:
            stream = container.streams.video[0]
            ticks_a_frame = 1 / (self.frame_rate * (stream.time_base or 1 / self.frame_rate))
            for packet in container.demux(stream):
                if not packet.size:
                    continue
                if packet.pts is None or packet.dts is None:
                    raise OutputError("a packet in it has no time", file=piece, fix="delete it and run again")
                packet.pts = begun + round(packet.pts / ticks_a_frame)
                packet.dts = begun + round(packet.dts / ticks_a_frame)
                packet.duration = 1
                packet.time_base = 1 / self.frame_rate
                packet.stream = self._video
                with output_errors(self.path):
                    self._container.mux(packet)
                    self.n_written += 1
                    if self._speech:
                        self._speech.advance(self.n_written / self.frame_rate)
                    if self._copied:
                        self._copied.advance(self.n_written / self.frame_rate)
        return self.n_written - begun

    def _flush_video(self) -> None:
        pass


@contextmanager
def _opened(piece: Path) -> Iterator[InputContainer]:
    try:
        with av.open(f"file:{piece}", options={"protocol_whitelist": "file"}) as container:
            yield container
    except (av.error.FFmpegError, OSError) as error:
        reason = error.strerror or type(error).__name__
        raise OutputError(f"a piece cannot be read ({reason})", file=piece, fix="delete it and run again") from error
