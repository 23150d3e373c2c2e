"""Opening media files and decoding what can be decoded: shared by the video and the speech reader."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, overload

import av
import av.error
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from lipstream.errors import InputError

logger = logging.getLogger(__name__)

# Metadata that is not UTF-8 must not make a file unreadable. PyAV 19 keeps such bytes itself and dropped the parameter.
_METADATA_ERRORS: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}

_TEXT_FORMATS = {"tty"}  # libav would gladly show a text file as a film of a terminal


def open_input(path: Path, noun: str) -> InputContainer:
    """Open a local media file for reading; `noun` ("video", "recording") says in errors what was expected.

    Raises InputError for a file that is missing, not a file, empty, unreadable or not media.
    """
    if path.is_dir():
        raise InputError(f"{path}: is a folder; name a {noun} file")
    if not path.exists():
        raise InputError(f"{path}: no such file; check the path of the {noun}")
    if not path.is_file():
        raise InputError(f"{path}: not a regular file; save the {noun} to disk first")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: the file is empty; name a {noun} that was written completely")
    try:
        # "file:" keeps a colon in the name from being read as a protocol, the list keeps playlists off the network.
        container: InputContainer = av.open(f"file:{path}", options={"protocol_whitelist": "file"}, **_METADATA_ERRORS)
    except PermissionError as error:
        raise InputError(f"{path}: no permission to read it; change its rights") from error
    except (av.error.FFmpegError, OSError) as error:
        reason = error.strerror or type(error).__name__
        raise InputError(f"{path}: not a readable {noun} ({reason}); export it again, complete") from error
    if container.format.name in _TEXT_FORMATS:
        container.close()
        raise InputError(f"{path}: is text, not a {noun}; name a media file")
    return container


@overload
def decode(path: Path, container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]: ...
@overload
def decode(path: Path, container: InputContainer, stream: AudioStream) -> Iterator[AudioFrame]: ...
def decode(
    path: Path, container: InputContainer, stream: VideoStream | AudioStream
) -> Iterator[VideoFrame | AudioFrame]:
    """Every frame that can be decoded from the container's position on; damage is skipped, and logged once."""
    packets = container.demux(stream)
    n_damaged = 0
    packet: Packet[Any] | None
    while True:
        try:
            packet = next(packets, None)
        except av.error.FFmpegError as error:
            logger.warning("%s: the file breaks off (%s); using what came before", path, error.strerror)
            packet = None
        if packet is not None and packet.size == 0:
            continue  # PyAV's own request to flush, and packets without content
        try:
            yield from stream.decode(packet)
        except av.error.FFmpegError:
            n_damaged += 1
        if packet is None:
            break
    if n_damaged:
        logger.warning("%s: %d damaged packets left out", path, n_damaged)
