"""Planes of luma and chroma: the formats that pictures are kept in, and the nearest of them to any other."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from av.video.format import VideoFormat
from av.video.frame import VideoFrame
from numpy.typing import NDArray

Planes = tuple[NDArray[Any], ...]

_NAME = re.compile(r"yuv[aj]?(420|422|444)p(9|10|12|14|16)?(le)?")
_SUBSAMPLING = {"420": (2, 2), "422": (2, 1), "444": (1, 1)}
_CHROMA = {pair: name for name, pair in _SUBSAMPLING.items()}
_DEPTHS = (8, 10, 12, 16)


@dataclass(frozen=True)
class Layout:
    """Three planes in libav's format `name`, of `bits` a sample; chroma is coarser `across` and `down` times."""

    name: str
    bits: int
    across: int
    down: int

    def n_bytes(self, width: int, height: int) -> int:
        """Return the size of a picture in memory."""
        samples = sum(-(-width // across) * -(-height // down) for across, down in self.steps())
        return samples * (1 if self.bits == 8 else 2)

    def steps(self) -> tuple[tuple[int, int], ...]:
        """Return how many pixels (across, down) a sample of each plane stands for."""
        return ((1, 1), (self.across, self.down), (self.across, self.down))


YUV420P = Layout("yuv420p", 8, 2, 2)


@lru_cache
def layout_of(name: str) -> Layout | None:
    """Return how a format of libav lies in memory, without alpha; None for one that is not three such planes."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    across, down = _SUBSAMPLING[match[1]]
    bits = int(match[2] or 8)
    return Layout(f"yuv{match[1]}p{match[2] or ''}{'le' if bits > 8 else ''}", bits, across, down)


def is_kept_as_rgb(stored: VideoFormat) -> bool:
    """Return whether pictures of a format are kept as RGB of 8 bits, which holds them: RGB, palettes and grey."""
    is_one = stored.is_rgb or stored.has_palette or len(stored.components) == 1
    return is_one and max(component.bits for component in stored.components) <= 8


def kept_layout(stored: VideoFormat, *, is_turned: bool) -> Layout:
    """Return the layout in which pictures of a format are kept: its own, or the nearest that can be.

    is_turned: by a quarter, which turns chroma that is coarser in one direction only.
    """
    layout = layout_of(stored.name)
    if layout is not None and not (is_turned and layout.across != layout.down):
        return layout
    bits = next((depth for depth in _DEPTHS if depth >= max(c.bits for c in stored.components)), _DEPTHS[-1])
    subsampling = (2, 2)
    if not (stored.is_rgb or stored.has_palette or is_turned) and len(stored.components) > 1:
        across, down = (64 // length for length in (stored.chroma_width(64), stored.chroma_height(64)))
        subsampling = (across, down)
    kept = layout_of(f"yuv{_CHROMA.get(subsampling, '420')}p{bits if bits > 8 else ''}{'le' if bits > 8 else ''}")
    assert kept is not None
    return kept


def planes_of(frame: VideoFrame, layout: Layout) -> Planes:
    """Return views of a frame's three planes; they keep its memory alive, which may be the decoder's own."""
    sample = np.dtype(np.uint8 if layout.bits == 8 else "<u2")
    planes = []
    for plane, (across, down) in zip(frame.planes, layout.steps(), strict=False):
        width, height = -(-frame.width // across), -(-frame.height // down)
        rows = np.frombuffer(memoryview(plane), sample).reshape(-1, plane.line_size // sample.itemsize)
        planes.append(rows[:height, :width])
    return tuple(planes)


def frame_of(planes: Planes, layout: Layout) -> VideoFrame:
    """Return a new frame with the content of planes; an odd width or height is made even by the last column or row."""
    height, width = planes[0].shape
    frame = VideoFrame(width + width % 2, height + height % 2, layout.name)
    for target, plane in zip(planes_of(frame, layout), planes, strict=True):
        rows, columns = plane.shape
        target[:rows, :columns] = plane
        target[:rows, columns:] = plane[:, -1:]
        target[rows:] = target[rows - 1]
    return frame
