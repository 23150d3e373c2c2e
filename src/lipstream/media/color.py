"""Convert colour between the video's YUV and the RGB that the models take.

Both ways use the same matrix and range, so RGB that comes back unchanged keeps its colour: luma is returned exactly,
chroma to a fraction of a level.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import av
import numpy as np
from av.video.reformatter import ColorRange, VideoReformatter
from numpy.typing import NDArray

FULL_RANGE = int(ColorRange.JPEG)
LIMITED_RANGE = int(ColorRange.MPEG)
UNSPECIFIED = 2
"""libav's "unspecified" for matrix, primaries and transfer (for the range it is 0)."""

# swscale's SWS_BILINEAR | SWS_ACCURATE_RND | SWS_FULL_CHR_H_INT | SWS_FULL_CHR_H_INP, which PyAV names since 18 only.
# Without the last three it takes a short cut that darkens every pixel by about one level of 255.
_SCALING = 0x2 | 0x40000 | 0x2000 | 0x4000

_MATRIX_RGB = 0
_MATRIX_BT709 = 1
_MATRIX_BT601 = 6
_SWSCALE_MATRIX = {_MATRIX_BT709: 1, 4: 4, 5: 5, _MATRIX_BT601: 5, 7: 7, 9: 9, 10: 9}  # AVColorSpace to SWS_CS_*


@dataclass(frozen=True)
class ColorTags:
    """How a stream encodes colour, in libav's numbers; set by the reader and written by the writer.

    `range`: 0 unspecified, 1 limited, 2 full. `space`: the YUV matrix (AVColorSpace). `primaries` and `transfer`:
    AVColorPrimaries and AVColorTransferCharacteristic, carried along and never converted.
    """

    range: int = 0
    space: int = UNSPECIFIED
    primaries: int = UNSPECIFIED
    transfer: int = UNSPECIFIED


def matrix_by_size(width: int, height: int) -> int:
    """Return the matrix that players assume for a stream that names none: BT.709 for high definition, else BT.601."""
    return _MATRIX_BT709 if max(width, height) >= 1280 or min(width, height) > 576 else _MATRIX_BT601


def tags_of_frame(frame: av.VideoFrame, primaries: int, transfer: int) -> ColorTags:
    """Return the tags of a decoded frame; for an RGB source, those of a YUV file made from it.

    Matrix and range stay unspecified where the source does not say: players then assume for the output what they
    assumed for the input.
    """
    space = int(frame.colorspace)
    if is_rgb(frame) or space == _MATRIX_RGB:  # grey pictures may be tagged as RGB too
        space = matrix_by_size(frame.width, frame.height)
    if is_rgb(frame):
        return ColorTags(LIMITED_RANGE, space, primaries, transfer)
    is_full = int(frame.color_range) == FULL_RANGE or frame.format.name.startswith("yuvj")
    return ColorTags(FULL_RANGE if is_full else int(frame.color_range), space, primaries, transfer)


def is_rgb(frame: av.VideoFrame) -> bool:
    """Return whether the pixels are stored as RGB (a palette counts)."""
    return frame.format.is_rgb or frame.format.has_palette


@dataclass(frozen=True)
class YuvColor:
    """How a whole picture's YUV is turned into RGB and back, so that its parts are treated alike.

    matrix: swscale's number. range: of libav, LIMITED_RANGE or FULL_RANGE. space, transfer: see ColorTags.
    """

    matrix: int
    range: int
    space: int
    transfer: int

    @classmethod
    def of(cls, tags: ColorTags, width: int, height: int) -> YuvColor:
        """Return what the tags of a picture of a size mean."""
        matrix = _SWSCALE_MATRIX.get(tags.space) or _SWSCALE_MATRIX[matrix_by_size(width, height)]
        return cls(matrix, FULL_RANGE if tags.range == FULL_RANGE else LIMITED_RANGE, tags.space, tags.transfer)


def to_rgb(
    frame: av.VideoFrame,
    color: YuvColor,
    width: int | None = None,
    height: int | None = None,
    *,
    is_deep: bool = False,
) -> NDArray[Any]:
    """Convert a frame to (height, width, 3) RGB without alpha, C-contiguous: uint8, or uint16 if `is_deep`.

    width, height: to scale it to; None: its own.
    """
    rgb = _reformatter().reformat(
        frame,
        width=width,
        height=height,
        # Planes: of those that lie together, rgb48le, swscale fills the blue ones of 4:2:0 with nonsense.
        format="gbrp16le" if is_deep else "rgb24",
        src_colorspace=color.matrix,
        dst_colorspace=color.matrix,
        src_color_range=FULL_RANGE if is_rgb(frame) else color.range,
        dst_color_range=FULL_RANGE,
        interpolation=_SCALING,
        threads=1,
    )
    return np.ascontiguousarray(rgb.to_ndarray())


def to_yuv(image: NDArray[Any], pixel_format: str, color: YuvColor) -> av.VideoFrame:
    """Convert a (height, width, 3) RGB image, uint8 or uint16, to a YUV format with the given matrix and range."""
    name = "rgb24" if image.dtype == np.uint8 else "gbrp16le"
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format=name)
    return converted(frame, pixel_format, color)


def converted(
    frame: av.VideoFrame, pixel_format: str, color: YuvColor, width: int | None = None, height: int | None = None
) -> av.VideoFrame:
    """Return a frame in a YUV format and a size; one that is in them already is returned itself."""
    is_full = is_rgb(frame) or color.range == FULL_RANGE
    if is_rgb(frame) and color.space in _SWSCALE_MATRIX:
        frame.colorspace = color.space  # the new frame inherits it; PyAV before 18 does not set BT.2020 by itself
    return _reformatter().reformat(
        frame,
        width=width,
        height=height,
        format=pixel_format,
        src_colorspace=color.matrix,
        dst_colorspace=color.matrix,
        src_color_range=FULL_RANGE if is_full else LIMITED_RANGE,
        dst_color_range=color.range,
        interpolation=_SCALING,
        threads=1,
    )


class _OfThread(threading.local):
    """A reformatter for each thread: it keeps what it prepared for the last size."""

    def __init__(self) -> None:
        self.reformatter = VideoReformatter()


_of_thread = _OfThread()


def _reformatter() -> VideoReformatter:
    return _of_thread.reformatter
