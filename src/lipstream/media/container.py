"""Open media files and decode what can be decoded; shared by the video and the speech reader."""

from __future__ import annotations

import logging
import os
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

_MOST_NAME_BYTES = 255
_TEXT_FORMATS = {"tty"}  # libav plays a text file as the video of a terminal


def open_input(path: Path, noun: str) -> InputContainer:
    """Open a local media file for reading; `noun` ("video", "recording") names in errors what was expected.

    Raises InputError for a file that is missing, not a file, empty, unreadable or not media.
    """
    if len(os.fsencode(path.name)) > _MOST_NAME_BYTES:
        raise InputError("no such file, its name is too long", file=path, fix=f"check the path of the {noun}")
    if path.is_dir():
        raise InputError("it is a folder", file=path, fix=f"name a {noun} file")
    if not path.exists():
        raise InputError("no such file", file=path, fix=f"check the path of the {noun}")
    if not path.is_file():
        raise InputError("not a regular file", file=path, fix=f"save the {noun} to disk first")
    if path.stat().st_size == 0:
        raise InputError("the file is empty", file=path, fix=f"name a {noun} that was written completely")
    try:
        # "file:" keeps a colon in the name from being read as a protocol, the list keeps playlists off the network.
        container: InputContainer = av.open(f"file:{path}", options={"protocol_whitelist": "file"}, **_METADATA_ERRORS)
    except PermissionError as error:
        raise InputError("no permission to read it", file=path, fix="change its permissions") from error
    except (av.error.FFmpegError, OSError) as error:
        reason = error.strerror or type(error).__name__
        raise InputError(f"not a readable {noun} ({reason})", file=path, fix="export it again, complete") from error
    if container.format.name in _TEXT_FORMATS:
        container.close()
        raise InputError(f"it is text, not a {noun}", file=path, fix="name a media file")
    return container


@overload
def decode(path: Path, container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]: ...
@overload
def decode(path: Path, container: InputContainer, stream: AudioStream) -> Iterator[AudioFrame]: ...
def decode(
    path: Path, container: InputContainer, stream: VideoStream | AudioStream
) -> Iterator[VideoFrame | AudioFrame]:
    """Yield every frame that can be decoded from the container's position on; damage is skipped, and logged once."""
    packets = container.demux(stream)
    n_damaged = 0
    packet: Packet[Any] | None
    while True:
        try:
            packet = next(packets, None)
        except av.error.FFmpegError as error:
            logger.warning("%s: the file ends early (%s); using what came before", path, error.strerror)
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
        logger.warning("%s: %d damaged packets skipped", path, n_damaged)
