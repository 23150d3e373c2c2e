"""Resize single uint8 RGB images (h, w, 3), arrange them on a sheet and write them as PNG."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from lipstream.media.atomic import write_whole

Image = NDArray[np.uint8]


def resized(image: Image, height: int, width: int | None = None) -> Image:
    """Resize an image by area averaging; without a width, the aspect ratio is kept."""
    width = width or max(round(image.shape[1] * height / image.shape[0]), 1)
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
    return np.asarray(frame.reformat(width=width, height=height, interpolation="AREA").to_ndarray(), np.uint8)


def sheet(rows: Sequence[Sequence[Image]]) -> Image:
    """Arrange rows of images one below the other; heights are equal within a row, widths equal over all rows."""
    return np.concatenate([np.concatenate(row, axis=1) for row in rows])


def write_png(path: Path, image: Image) -> None:
    """Write an image, whole or not at all, replacing an existing file. Raises OutputError."""
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
    codec = av.CodecContext.create("png", "w")
    codec.width, codec.height, codec.pix_fmt = frame.width, frame.height, "rgb24"
    codec.time_base = Fraction(1)
    write_whole(path, b"".join(bytes(packet) for packet in [*codec.encode(frame), *codec.encode(None)]))
