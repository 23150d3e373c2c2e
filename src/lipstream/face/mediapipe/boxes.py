"""Where mediapipe's full-range detector finds faces in a picture: squares to run the mesh network on.

The detector answers for a grid of 48 x 48 places; what its numbers mean is published with mediapipe.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from lipstream.face.mediapipe.networks import SIDE, Network

_GRID = 48
# Boxes that share so much of their union are one face.
_SAME_FACE = 0.3
# Pictures up to this long show any face that is large enough to be used; longer ones are searched in tiles too.
LONGEST_WHOLE = 640


@dataclass(frozen=True)
class Place:
    """A square round a face, in pixels of the frame: its centre, its side, and the angle that the face is turned by.

    angle: of the line from the picture's left eye to its right one, radians, clockwise. score: the detector's, 0 to 1.
    """

    x: float
    y: float
    side: float
    angle: float
    score: float


def places(network: Network, image: NDArray[np.uint8]) -> list[Place]:
    """Return where the network finds faces in a uint8 RGB picture (h, w, 3), by falling score."""
    height, width = image.shape[:2]
    longer = max(height, width)
    found, scores = network.run(_letterbox(image))
    positive = np.flatnonzero(scores >= 0)
    score = 1 / (1 + np.exp(-scores[positive, 0].astype(np.float64)))
    # Centre, size and points are all given in pixels of the network's picture, counted from the place's own centre.
    numbers = found[positive].astype(np.float64).reshape(-1, 8, 2) / SIDE
    centres = (np.stack([positive % _GRID, positive // _GRID], axis=1) + 0.5) / _GRID
    numbers[:, [0, 2, 3, 4, 5, 6, 7]] += centres[:, None]
    border = np.array([longer - width, longer - height]) / 2
    return [_place(face * longer, border, score) for face, score in _merged(numbers, score)]


def places_in_tiles(network: Network, image: NDArray[np.uint8]) -> Iterator[Place]:
    """Find faces as `places` does, in squares half as long as the frame that overlap by half."""
    height, width = image.shape[:2]
    side = -(-max(height, width) // 2)
    for top in _tile_starts(height, side):
        for left in _tile_starts(width, side):
            for place in places(network, image[top : top + side, left : left + side]):
                yield Place(place.x + left, place.y + top, place.side, place.angle, place.score)


def _letterbox(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a picture as large as fits into the network's square (3, 192, 192), black about it."""
    height, width = image.shape[:2]
    longer = max(height, width)
    new_height, new_width = (max(round(length * SIDE / longer), 1) for length in (height, width))
    # Two rows for every new one are enough to be averaged; the rest is never read.
    rows = np.ascontiguousarray(image[:: max(longer // (2 * SIDE), 1)])
    pixels = torch.from_numpy(rows).permute(2, 0, 1)[None]
    small = F.interpolate(pixels, size=(new_height, new_width), mode="bilinear", antialias=True)[0]
    left, top = (SIDE - new_width) // 2, (SIDE - new_height) // 2
    square = np.zeros((3, SIDE, SIDE), np.uint8)
    square[:, top : top + new_height, left : left + new_width] = small.numpy()
    return square


def _merged(numbers: NDArray[np.float64], score: NDArray[np.float64]) -> Iterator[tuple[NDArray[np.float64], float]]:
    """Yield numbers (8, 2) and a score per face: the mean, weighted by score, of those that overlap the best one."""
    left_top, right_bottom = numbers[:, 0] - numbers[:, 1] / 2, numbers[:, 0] + numbers[:, 1] / 2
    areas = numbers[:, 1].prod(axis=1)
    remaining = np.argsort(-score, kind="stable")
    while len(remaining):
        best = remaining[0]
        shared = np.minimum(right_bottom[remaining], right_bottom[best])
        shared = (shared - np.maximum(left_top[remaining], left_top[best])).clip(0).prod(axis=1)
        same = shared / (areas[remaining] + areas[best] - shared) > _SAME_FACE
        same[0] = True
        group, remaining = remaining[same], remaining[~same]
        yield np.average(numbers[group], axis=0, weights=score[group]), float(score[best])


def _place(face: NDArray[np.float64], border: NDArray[np.float64], score: float) -> Place:
    (x, y), size, (left_eye, right_eye) = face[0] - border, face[1], face[2:4]
    angle = math.atan2(right_eye[1] - left_eye[1], right_eye[0] - left_eye[0])
    return Place(float(x), float(y), float(size.max()), angle, score)


def _tile_starts(length: int, side: int) -> list[int]:
    slack = max(length - side, 0)
    steps = -(-slack // (side // 2))
    return [slack * step // max(steps, 1) for step in range(steps + 1)]
