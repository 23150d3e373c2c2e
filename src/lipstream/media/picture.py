"""Single pictures, uint8 RGB (h, w, 3): made smaller, put on a sheet, written as PNG."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import av.error
import numpy as np
from av.video.codeccontext import VideoCodecContext
from numpy.typing import NDArray

from lipstream.errors import OutputError

Image = NDArray[np.uint8]


def scaled(image: Image, height: int) -> Image:
    """The picture at another height, its width to match; each new pixel is the mean of those it covers."""
    width = max(round(image.shape[1] * height / image.shape[0]), 1)
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
    smaller: Image = frame.reformat(width=width, height=height, interpolation="AREA").to_ndarray()
    return smaller


def sheet(rows: Sequence[Sequence[Image]]) -> Image:
    """Rows of pictures, all of one size, one row below the other."""
    return np.concatenate([np.concatenate(row, axis=1) for row in rows])


def write_png(path: Path, image: Image) -> None:
    """Write a picture, whole or not at all; one that is there is replaced. Raises OutputError."""
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
    codec = cast(VideoCodecContext, av.CodecContext.create("png", "w"))
    codec.width, codec.height, codec.pix_fmt = frame.width, frame.height, "rgb24"
    codec.time_base = Fraction(1)
    write_whole(path, b"".join(bytes(packet) for packet in [*codec.encode(frame), *codec.encode(None)]))


def write_whole(path: Path, content: bytes) -> None:
    """Write a small file, whole or not at all; one that is there is replaced. Raises OutputError."""
    hidden = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.part{path.suffix}")
    try:
        try:
            hidden.write_bytes(content)
            hidden.replace(path)
        finally:
            hidden.unlink(missing_ok=True)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise OutputError(f"{path}: cannot be written ({reason}); free some space or choose another folder") from error
