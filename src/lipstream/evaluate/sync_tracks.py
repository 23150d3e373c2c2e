"""The faces that SyncNet is shown: tracks of a face through a video, and their crops.

After the published evaluation, but with our detectors in place of S3FD, one face per frame, no re-encoding of frames
and crops in between, and cuts found by the face's jump alone (see docs/departures.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from lipstream.evaluate.syncnet import CROP_PX
from lipstream.media.reader import read_frames

Box = tuple[float, float, float, float]

SHORTEST_FRAMES = 50
"""Frames with a face that a track needs, as published: 2 s."""

_LEAST_OVERLAP, _LONGEST_GAP, _SMALLEST_PX = 0.5, 25, 100
_MARGIN, _MEDIAN, _GREY = 0.4, 13, 110


@dataclass(frozen=True)
class Track:
    """A face from frame `first` on; squares: (n, 3) its smoothed centre x, y and half side in px, one per frame."""

    first: int
    squares: NDArray[np.float64]


def tracks(boxes: Sequence[Box | None]) -> list[Track]:
    """Join the boxes (left, top, right, bottom) of a video's frames to tracks of at least SHORTEST_FRAMES.

    A gap of up to 25 frames without a face is bridged; a box that overlaps the one before by less than half begins
    another track.
    """
    runs: list[list[tuple[int, Box]]] = []
    for index, box in enumerate(boxes):
        if box is None:
            continue
        if runs and index - runs[-1][-1][0] <= _LONGEST_GAP and _overlap(box, runs[-1][-1][1]) > _LEAST_OVERLAP:
            runs[-1].append((index, box))
        else:
            runs.append([(index, box)])
    found = [_track(run) for run in runs if len(run) >= SHORTEST_FRAMES]
    return [track for track in found if 2 * track.squares[:, 2].mean() > _SMALLEST_PX]


def _overlap(one: Box, other: Box) -> float:
    """Return the intersection of two boxes over their union."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    both = max(width, 0) * max(height, 0)
    return both / (sum((b[2] - b[0]) * (b[3] - b[1]) for b in (one, other)) - both)


def _track(run: Sequence[tuple[int, Box]]) -> Track:
    indices, boxes = np.array([index for index, _ in run]), np.array([box for _, box in run])
    frames = np.arange(indices[0], indices[-1] + 1)
    left, top, right, bottom = (np.interp(frames, indices, boxes[:, i]) for i in range(4))
    squares = (left + right) / 2, (top + bottom) / 2, np.maximum(bottom - top, right - left) / 2
    return Track(int(frames[0]), np.stack([_median(values) for values in squares], axis=1))


def _median(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the median over 13 values, zeros beyond both ends, as published."""
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(values, _MEDIAN // 2), _MEDIAN)
    return np.asarray(np.median(windows, axis=1))


def crops(video: Path, track: Track) -> Iterator[NDArray[np.uint8]]:
    """Yield what SyncNet is shown of a track: crops (224, 224, 3) uint8 BGR. Raises InputError."""
    for frame in read_frames(video):
        place = frame.index - track.first
        if place >= len(track.squares):
            return
        if place >= 0:
            yield crop(frame.image, *track.squares[place].tolist())


def crop(image: NDArray[np.uint8], x: float, y: float, half: float) -> NDArray[np.uint8]:
    """Cut the published square out of an RGB frame (h, w, 3): (224, 224, 3) uint8 BGR.

    The square is 1.4 times the face's, from its upper edge on, grey beyond the frame, resized bilinearly.
    """
    pad = int(half * (1 + 2 * _MARGIN))
    rows = int(y + pad - half) - pad, int(y + pad + half * (1 + 2 * _MARGIN)) - pad
    columns = int(x + pad - half * (1 + _MARGIN)) - pad, int(x + pad + half * (1 + _MARGIN)) - pad
    square = np.full((max(rows[1] - rows[0], 1), max(columns[1] - columns[0], 1), 3), _GREY, np.uint8)
    top, left = max(rows[0], 0), max(columns[0], 0)
    seen = image[top : max(rows[1], 0), left : max(columns[1], 0)]
    square[top - rows[0] : top - rows[0] + seen.shape[0], left - columns[0] : left - columns[0] + seen.shape[1]] = seen
    pixels = torch.from_numpy(np.ascontiguousarray(square[..., ::-1])).permute(2, 0, 1)[None].float()
    resized = F.interpolate(pixels, size=(CROP_PX, CROP_PX), mode="bilinear", align_corners=False)
    return np.asarray(resized[0].round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy())
