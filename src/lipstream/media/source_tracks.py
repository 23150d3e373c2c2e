"""What a result keeps of its source beside the picture: tags, chapters, other sound tracks, subtitles."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import av.error
from av.container import OutputContainer
from av.packet import Packet
from av.stream import Disposition, Stream

from lipstream.errors import InputError
from lipstream.media.container import open_input

logger = logging.getLogger(__name__)

_OF_THE_FILE = {"major_brand", "minor_version", "compatible_brands", "encoder", "duration", "comment"}
"""Tags that belong to the source as a file, and the comment, to which ours is added."""

_RENAMED = {"com.apple.quicktime.location.iso6709": "location"}
"""mp4 keeps the place under this name only."""

_IN_MP4 = {"aac", "mp3", "ac3", "eac3", "alac", "mov_text"}
"""Codecs of tracks that mp4 and mov take as they are."""

_IN_MATROSKA = {
    "aac",
    "mp3",
    "ac3",
    "eac3",
    "alac",
    "opus",
    "vorbis",
    "flac",
    "subrip",
    "srt",
    "ass",
    "ssa",
    "webvtt",
} | {
    "pcm_s16le",
    "pcm_s24le",
    "hdmv_pgs_subtitle",
    "dvd_subtitle",
}


class SourceTracks:
    """Copies tags and tracks of a source into a container that is being written, as far as the picture has come."""

    def __init__(self, source: Path, output: OutputContainer, picture: Stream, length_s: Fraction) -> None:
        """length_s: of the output. The streams of picture and speech must have been added."""
        self._output = output
        self._input = open_input(source, "video")
        try:
            for name, value in self._input.metadata.items():
                name = _RENAMED.get(name.lower(), name)
                if name.lower() not in _OF_THE_FILE:
                    output.metadata[name] = value
            self.comment = self._input.metadata.get("comment") or self._input.metadata.get("COMMENT")
            videos = self._input.streams.video
            if videos and "language" in videos[0].metadata:
                picture.metadata["language"] = videos[0].metadata["language"]
            self._start_s = Fraction(self._input.start_time or 0, 1_000_000)
            output.set_chapters(_chapters(self._input.chapters(), self._start_s, length_s))
            self._streams = self._add_streams(source)
            self._packets = self._read()
            self._waiting = next(self._packets, None)
        except BaseException:
            self._input.close()
            raise

    def advance(self, time_s: Fraction) -> None:
        """Copy what begins before `time_s`."""
        while self._waiting is not None and self._waiting[0] < time_s:
            self._output.mux(self._waiting[1])
            self._waiting = next(self._packets, None)

    def close(self) -> None:
        """Close the source."""
        self._input.close()

    def _add_streams(self, source: Path) -> dict[int, Stream]:
        """Add the tracks that can be copied; return them by their index in the source."""
        spoken = self._input.streams.best("audio")  # what the speech takes the place of
        known = _IN_MATROSKA if self._output.format.name == "matroska" else _IN_MP4
        added: dict[int, Stream] = {}
        for stream in (*self._input.streams.audio, *self._input.streams.subtitles):
            if stream == spoken:
                continue
            codec = stream.codec_context.name if stream.codec_context else "unknown"
            if codec not in known:
                logger.warning("%s: %s track %d (%s) is not copied", source, stream.type, stream.index, codec)
                continue
            copy = self._output.add_stream_from_template(stream)
            copy.disposition = stream.disposition & ~Disposition.default
            copy.metadata.update(
                {name: stream.metadata[name] for name in ("language", "title") if name in stream.metadata}
            )
            added[stream.index] = copy
        return added

    def _read(self) -> Iterator[tuple[Fraction, Packet[Any]]]:
        """Yield packets to copy, and when they begin in the output."""
        if not self._streams:
            return
        wanted = [self._input.streams[index] for index in self._streams]
        last: dict[int, int] = {}
        try:
            for packet in self._input.demux(wanted):
                time_base, index = packet.time_base, packet.stream.index
                if packet.pts is None or packet.dts is None or time_base is None:
                    continue
                offset = round(self._start_s / time_base)
                packet.pts, packet.dts = packet.pts - offset, packet.dts - offset
                if packet.dts < 0 or packet.dts <= last.get(index, -1):
                    continue
                last[index] = packet.dts
                packet.stream = self._streams[index]
                yield packet.pts * time_base, packet
        except av.error.FFmpegError as error:
            logger.warning("%s: the file ends early (%s)", self._input.name, error.strerror)


def tags_with(comment: str | None, metadata: Mapping[str, str]) -> dict[str, str]:
    """Return tags to write: ours, with the comment that a source had before our own."""
    ours = metadata.get("comment")
    if not comment or not ours or ours in comment:
        return {**metadata, **({"comment": comment} if comment else {})}
    return {**metadata, "comment": f"{comment}\n{ours}"}


def speech_language(path: Path, track: int | None) -> str | None:
    """Return the language that a recording's track states, or None."""
    try:
        with open_input(path, "recording") as container:
            streams = container.streams.audio
            language = streams[track or 0].metadata.get("language") if streams else None
            return None if language == "und" else language
    except InputError:
        return None


def _chapters(chapters: list[Any], start_s: Fraction, length_s: Fraction) -> list[Any]:
    """Return the chapters of the first `length_s` of a source."""
    kept = []
    for chapter in chapters:
        time_base = Fraction(chapter["time_base"])
        start, end = (round((chapter[name] * time_base - start_s) * 1000) for name in ("start", "end"))
        end = min(end, round(length_s * 1000))
        if 0 <= start < end:
            kept.append({**chapter, "start": start, "end": end, "time_base": Fraction(1, 1000)})
    return kept
