"""Faces with mediapipe's networks: works without a download, on the CPU.

Their 468-point mesh stands in for InsightFace's 106 points, which the published model was trained with.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from lipstream.face.detector import Face, choose, has_room_for_a_face, is_near, usable
from lipstream.face.mediapipe.boxes import LONGEST_WHOLE, Place, places, places_in_tiles
from lipstream.face.mediapipe.networks import DETECTION, MESH, SIDE, Network, Pool, Runs

# Mesh points that lie where the 106-point scheme has the points that the published alignment averages: the brows'
# outer tips and upper edges; of the nose the lower bridge, the tip and both wings. On the aligned faces in the
# LatentSync authors' own figure they give back the framing within 1.5 % of the crop in place, 3.5 % in scale.
_LEFT_BROW = (70, 63, 105, 66, 107)
_RIGHT_BROW = (300, 293, 334, 296, 336)
_NOSE = (195, 5, 4, 129, 358)
_NOSE_WEIGHTS = np.array([0.5, 0.5, 1, 1, 1]) / 4
_LEFT_EYE, _RIGHT_EYE = 33, 263

# The network is given a square 1.5 times as large as the face.
_MARGIN = 1.5
_MESH_CONFIDENCE = 0.5
# The square's position moves the mesh by a pixel or two, so the network is run again around the mesh until that moves
# by less than 0.7 % of its size. Each time its size goes three quarters of its way (on footage and portraits alike).
_SETTLED = 0.007
_OVERSHOOT = 0.3
_MAX_RUNS = 5
# Pixels are cut out for squares that may still grow or move by so much.
_SLACK = 1.15
# The detector's box of a face is smaller than the mesh's.
_DETECTED_SHARE = 1 / 1.1


@dataclass(frozen=True)
class Mesh:
    """Points (468, 2) in pixels of the frame, the place that was searched and the one that they are at."""

    points: NDArray[np.float64]
    searched: Place
    found: Place

    def is_settled(self) -> bool:
        """Return whether they are where they were searched for."""
        found, searched = self.found, self.searched
        moved = max(abs(found.x - searched.x), abs(found.y - searched.y), abs(found.side - searched.side))
        turned = abs(found.angle - searched.angle)
        return moved < _SETTLED * found.side and turned < 2 * _SETTLED

    def next_place(self) -> Place:
        """Return where to search for them next."""
        return replace(self.found, side=self.found.side * (self.found.side / self.searched.side) ** _OVERSHOOT)


@dataclass(frozen=True)
class _Networks:
    detection: Network
    mesh: Network


class MediapipeDetector:
    """`Detector` with mediapipe's full-range face detection and face mesh. ModelError where LiteRT is missing.

    Every frame is searched by itself. A thread borrows a pair of networks for the length of a call; there are
    as many pairs as threads ever called at once.
    """

    name = "mediapipe"
    looks_at_parts = True

    def __init__(self) -> None:
        self._pool = Pool(lambda: _Networks(Network(DETECTION), Network(MESH)))

    def detect(self, image: NDArray[np.uint8]) -> Face | None:
        """Return the largest usable face of a uint8 RGB frame (h, w, 3), or None.

        Small faces in a large frame are searched for in overlapping tiles, if the whole frame shows no usable face.
        """
        return next(iter(self.detect_all(image)), None)

    def detect_all(self, image: NDArray[np.uint8]) -> list[Face]:
        """Return all usable faces of a uint8 RGB frame (h, w, 3), from the largest to the smallest; see `detect`."""
        if not has_room_for_a_face(image):
            return []
        with self._pool.borrowed() as networks:
            faces = usable(_faces(networks.mesh, image, places(networks.detection, image)))
            if not faces and max(image.shape[:2]) > LONGEST_WHOLE:
                image = np.asarray(image)  # tiles cover it more than twice
                faces = usable(_faces(networks.mesh, image, places_in_tiles(networks.detection, image)))
        return faces

    def detect_near(self, image: NDArray[np.uint8], held: Face) -> Face | None:
        """Return the face that lies where `held` does, from the mesh alone; its score is that of `held`.

        Two thirds of the work of `detect`, and the same face within about a pixel.
        """
        (left_x, left_y), (right_x, right_y) = held.landmarks[:2]
        place = _place_of(held.box, math.atan2(right_y - left_y, right_x - left_x), held.score)
        with self._pool.borrowed() as networks:
            mesh = mesh_at(networks.mesh, image, place)
        face = choose([_face(mesh.points, held.score)]) if mesh is not None and mesh.is_settled() else None
        return face if face is not None and is_near(face, held) else None

    def close(self) -> None:
        """Free all networks. No thread may be in `detect`."""
        self._pool.close()


def _faces(network: Runs, image: NDArray[np.uint8], found: Iterable[Place]) -> list[Face]:
    """Return a face for every place that shows one, from the largest to the smallest, each face once."""
    faces: list[Face] = []
    for place in sorted(found, key=lambda place: -place.side):
        if any(_is_in(place, face) for face in faces):
            continue
        mesh = mesh_at(network, image, replace(place, side=place.side / _DETECTED_SHARE))
        if mesh is not None:
            faces.append(_face(mesh.points, place.score))
    return faces


def _is_in(place: Place, face: Face) -> bool:
    left, top, right, bottom = face.box
    return left <= place.x <= right and top <= place.y <= bottom


def mesh_at(network: Runs, image: NDArray[np.uint8], place: Place) -> Mesh | None:
    """Return the mesh of the face at a place, or None."""
    cut = _cut(image, place)
    mesh = None if cut is None else _run(network, cut, place)
    for _ in range(_MAX_RUNS - 1):
        if mesh is None or mesh.is_settled():
            break
        again = mesh.next_place()
        cut = cut if cut is not None and cut.holds(again) else _cut(image, again)
        mesh = None if cut is None else _run(network, cut, again)
    if mesh is None or math.dist((mesh.found.x, mesh.found.y), (place.x, place.y)) >= place.side / 2:
        return None
    return mesh


@dataclass(frozen=True)
class _Cut:
    """A rectangle of the frame, float32 (3, h, w), and the matrix (2, 3) that takes the frame's pixels to its own.

    For squares whose corners are within `reach` of (x, y).
    """

    pixels: Tensor
    from_frame: NDArray[np.float64]
    x: float
    y: float
    reach: float

    def holds(self, place: Place) -> bool:
        """Return whether the square of a place lies in it."""
        return max(abs(place.x - self.x), abs(place.y - self.y)) + _reach(place) <= self.reach


def _reach(place: Place) -> float:
    """Return how far the corners of the square, half as large again as the place, are from its centre in x or y."""
    return _MARGIN * place.side / 2 * (abs(math.cos(place.angle)) + abs(math.sin(place.angle)))


def _cut(image: NDArray[np.uint8], place: Place) -> _Cut | None:
    """Return the pixels around a place, no finer than the network's input; None outside the frame."""
    reach = _SLACK * _reach(place)
    left, top = (max(math.floor(centre - reach), 0) for centre in (place.x, place.y))
    right, bottom = (max(math.ceil(centre + reach) + 1, 0) for centre in (place.x, place.y))
    rectangle = np.ascontiguousarray(image[top:bottom, left:right])
    if rectangle.size == 0:
        return None
    shrink = max(_MARGIN * place.side / SIDE, 1.0)
    height, width = (max(round(length / shrink), 1) for length in rectangle.shape[:2])
    pixels = torch.from_numpy(rectangle).permute(2, 0, 1)[None]
    pixels = F.interpolate(pixels, size=(height, width), mode="bilinear", antialias=True)[0]
    across, down = width / rectangle.shape[1], height / rectangle.shape[0]
    from_frame = np.array([[across, 0, (0.5 - left) * across - 0.5], [0, down, (0.5 - top) * down - 0.5]])
    return _Cut(torch.from_numpy(pixels.numpy().astype(np.float32)), from_frame, place.x, place.y, reach)


def _run(network: Runs, cut: _Cut, place: Place) -> Mesh | None:
    """Run the network on a place; None if it shows no face."""
    scale = _MARGIN * place.side / SIDE
    across, down = scale * math.cos(place.angle), scale * math.sin(place.angle)
    to_frame = np.array([[across, -down, 0.0], [down, across, 0.0]])
    to_frame[:, 2] = (place.x, place.y) - to_frame[:, :2].sum(axis=1) * SIDE / 2
    to_cut = cut.from_frame[:, :2] @ to_frame
    to_cut[:, 2] += cut.from_frame[:, 2]
    grid = _grid(to_cut, cut.pixels.shape[2], cut.pixels.shape[1])
    picture = F.grid_sample(cut.pixels[None], grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    mesh, score = network.run(picture[0].numpy())
    if 1 / (1 + math.exp(-float(score.item()))) < _MESH_CONFIDENCE:
        return None
    points = mesh.reshape(-1, 3)[:, :2].astype(np.float64) @ to_frame[:, :2].T + to_frame[:, 2]
    eyes = points[_RIGHT_EYE] - points[_LEFT_EYE]
    return Mesh(points, place, _place_of(_box(points), math.atan2(eyes[1], eyes[0]), place.score))


def _grid(matrix: NDArray[np.float64], width: int, height: int) -> Tensor:
    """Return where `matrix` sends the square's pixels, as grid_sample takes it: (1, 192, 192, 2), -1 to 1.

    In numpy: torch would split work as small as this among threads, which costs others more than it gains here.
    """
    columns = np.arange(SIDE)
    grid = np.empty((1, SIDE, SIDE, 2), np.float32)
    for axis, length in enumerate((width, height)):
        across, down, shift = matrix[axis] * 2 / length
        row = (across * columns + shift + 1 / length - 1).astype(np.float32)
        column = (down * columns).astype(np.float32)[:, None]
        np.add(row, column, out=grid[0, ..., axis])
    return torch.from_numpy(grid)


def _place_of(box: tuple[float, float, float, float], angle: float, score: float) -> Place:
    left, top, right, bottom = box
    return Place((left + right) / 2, (top + bottom) / 2, max(right - left, bottom - top), angle, score)


def _face(points: NDArray[np.float64], score: float) -> Face:
    nose = _NOSE_WEIGHTS @ points[list(_NOSE)]
    brows = [points[list(brow)].mean(axis=0) for brow in (_LEFT_BROW, _RIGHT_BROW)]
    return Face(_box(points), score, np.round([*brows, nose]))


def _box(points: NDArray[np.float64]) -> tuple[float, float, float, float]:
    (left, top), (right, bottom) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
    return left, top, right, bottom
