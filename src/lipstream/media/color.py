"""Convert colour between the video's YUV and the RGB that the models take.

Reading and writing go through one pair of functions with the same matrix and range, so a frame that is read and written
untouched keeps its colour: luma is returned exactly, chroma to a fraction of a level.
"""

from __future__ import annotations

from dataclasses import dataclass

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


def to_rgb(
    frame: av.VideoFrame, tags: ColorTags, width: int, height: int, reformatter: VideoReformatter
) -> NDArray[np.uint8]:
    """Convert a decoded frame to (height, width, 3) uint8 RGB, C-contiguous, without alpha, scaled to the size."""
    source_range = FULL_RANGE if is_rgb(frame) else _range(tags)
    rgb = reformatter.reformat(
        frame,
        width=width,
        height=height,
        format="rgb24",
        src_colorspace=_swscale_matrix(tags, width, height),
        dst_colorspace=_swscale_matrix(tags, width, height),
        src_color_range=source_range,
        dst_color_range=FULL_RANGE,
        interpolation=_SCALING,
    )
    image: NDArray[np.uint8] = np.ascontiguousarray(rgb.to_ndarray())
    # A frame that needed no conversion is the decoder's own memory, which later frames may be built on.
    return image.copy() if rgb is frame else image


def to_yuv420p(image: NDArray[np.uint8], tags: ColorTags, reformatter: VideoReformatter) -> av.VideoFrame:
    """Convert a (height, width, 3) uint8 RGB image of even size to yuv420p with the given matrix and range."""
    height, width = image.shape[:2]
    frame = av.VideoFrame.from_ndarray(image, format="rgb24")
    if tags.space in _SWSCALE_MATRIX:
        frame.colorspace = tags.space  # the new frame inherits it; PyAV before 18 does not set BT.2020 by itself
    return reformatter.reformat(
        frame,
        format="yuv420p",
        src_colorspace=_swscale_matrix(tags, width, height),
        dst_colorspace=_swscale_matrix(tags, width, height),
        src_color_range=FULL_RANGE,
        dst_color_range=_range(tags),
        interpolation=_SCALING,
    )


def _range(tags: ColorTags) -> int:
    return FULL_RANGE if tags.range == FULL_RANGE else LIMITED_RANGE


def _swscale_matrix(tags: ColorTags, width: int, height: int) -> int:
    return _SWSCALE_MATRIX.get(tags.space) or _SWSCALE_MATRIX[matrix_by_size(width, height)]
