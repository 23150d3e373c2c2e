"""Faces with mediapipe, whose models come in its wheel: works without a download, on the CPU.

Its 478-point mesh stands in for InsightFace's 106 points, which the published model was trained with.
"""

from __future__ import annotations

import contextlib
import math
import queue
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipstream.errors import ModelError
from lipstream.face.faces import Face, choose, has_room_for_a_face, is_near
from lipstream.face.libraries import import_mend, native_logs_hidden

# Mesh points that lie where the 106-point scheme has the points that the published alignment averages: the brows'
# outer tips and upper edges; of the nose the lower bridge, the tip and both wings. On the aligned faces in the
# LatentSync authors' own figure they give back the framing within 1.5 % of the crop in place, 3.5 % in scale.
_LEFT_BROW = (70, 63, 105, 66, 107)
_RIGHT_BROW = (300, 293, 334, 296, 336)
_NOSE = (195, 5, 4, 129, 358)
_NOSE_WEIGHTS = np.array([0.5, 0.5, 1, 1, 1]) / 4

# Where the wheel keeps the models used here.
MODEL_FILES = (
    "modules/face_detection/face_detection_full_range_sparse.tflite",
    "modules/face_detection/face_detection_short_range.tflite",
    "modules/face_landmark/face_landmark_with_attention.tflite",
)

# The mesh is sought in a square three times the size of the detector's box, among its few best faces.
_MARGIN = 3.0
_NEIGHBOURS = 3
# The longer side of the detector's box, in that of the mesh's.
_DETECTED_SHARE = 0.92
# A mesh is only sought where the detector saw a face, so it may be less sure of it.
_MESH_CONFIDENCE = 0.3
_DETECTION_CONFIDENCE = 0.5
# Pictures up to this long show any face that is large enough to be used; longer ones are searched in tiles
# too.
_LONGEST_WHOLE = 640


@dataclass(frozen=True)
class _Place:
    """Where the detector saw a face: the centre and the size of its box, in pixels."""

    x: float
    y: float
    size: float
    score: float

    def is_in(self, face: Face) -> bool:
        left, top, right, bottom = face.box
        return left <= self.x <= right and top <= self.y <= bottom


@dataclass(frozen=True)
class _Solvers:
    detection: Any
    mesh: Any

    def close(self) -> None:
        self.detection.close()
        self.mesh.close()


class MediapipeDetector:
    """`Detector` with mediapipe's full-range face detection and face mesh. ModelError where it is missing.

    Every frame is looked at by itself. A thread borrows a pair of solvers for the length of a call; there are
    as many pairs as threads ever called at once.
    """

    name = "mediapipe"

    def __init__(self) -> None:
        self._solutions = import_solutions()
        self._idle: queue.SimpleQueue[_Solvers] = queue.SimpleQueue()
        self._met_a_face = False
        self._idle.put(self._new_solvers())

    def detect(self, image: NDArray[np.uint8]) -> Face | None:
        """The largest usable face of a uint8 RGB frame (h, w, 3), or None.

        Small faces in a large frame are sought in overlapping tiles, where the whole frame shows no usable
        face.
        """
        if not has_room_for_a_face(image):
            return None
        image = np.ascontiguousarray(image)
        with self._borrowed() as solvers:
            face = choose(self._faces(solvers, image, _places(solvers.detection, image)))
            if face is None and max(image.shape[:2]) > _LONGEST_WHOLE:
                face = choose(self._faces(solvers, image, _places_in_tiles(solvers.detection, image)))
        return face

    def detect_near(self, image: NDArray[np.uint8], held: Face) -> Face | None:
        """The face that lies where `held` does, from the mesh alone; its score is that of `held`.

        Half the work of `detect`. The mesh moves by a pixel or two with the square it is sought in, and here that
        lies round the held face, not round what the detector would see in this frame.
        """
        left, top, right, bottom = held.box
        size = _DETECTED_SHARE * max(right - left, bottom - top)
        place = _Place((left + right) / 2, (top + bottom) / 2, size, held.score)
        with self._borrowed() as solvers:
            points = self._mesh_at(solvers, image, place)
        face = None if points is None else choose([_face(points, held.score)])
        return face if face is not None and is_near(face, held) else None

    def close(self) -> None:
        """Let go of all solvers. No thread may be in `detect`."""
        while not self._idle.empty():
            self._idle.get().close()

    @contextlib.contextmanager
    def _borrowed(self) -> Iterator[_Solvers]:
        try:
            solvers = self._idle.get_nowait()
        except queue.Empty:
            solvers = self._new_solvers()
        yield solvers
        # Not after an error: a graph that failed once answers nothing more.
        self._idle.put(solvers)

    def _new_solvers(self) -> _Solvers:
        blank = np.zeros((64, 64, 3), np.uint8)
        with native_logs_hidden():
            solvers = _Solvers(
                self._solutions.face_detection.FaceDetection(
                    model_selection=1, min_detection_confidence=_DETECTION_CONFIDENCE
                ),
                self._solutions.face_mesh.FaceMesh(
                    static_image_mode=True,
                    max_num_faces=_NEIGHBOURS,
                    refine_landmarks=True,
                    min_detection_confidence=_MESH_CONFIDENCE,
                ),
            )
            # The models are opened by threads of their own, which talk until the first picture is through.
            solvers.detection.process(blank)
            solvers.mesh.process(blank)
        return solvers

    def _faces(self, solvers: _Solvers, image: NDArray[np.uint8], places: Iterable[_Place]) -> list[Face]:
        """A face for every place that shows one, from the largest to the smallest, each face once."""
        faces: list[Face] = []
        for place in sorted(places, key=lambda place: -place.size):
            if any(place.is_in(face) for face in faces):
                continue
            points = self._mesh_at(solvers, image, place)
            if points is not None:
                faces.append(_face(points, place.score))
        return faces

    def _mesh_at(self, solvers: _Solvers, image: NDArray[np.uint8], place: _Place) -> NDArray[np.float64] | None:
        """The mesh (478, 2) of the face at a place, in pixels of the frame; None where there is none."""
        side = max(round(place.size * _MARGIN), 1)
        left, top = round(place.x - side / 2), round(place.y - side / 2)
        # The first mesh that is found is announced with a warning about pictures that are not square.
        with contextlib.nullcontext() if self._met_a_face else native_logs_hidden():
            found = solvers.mesh.process(_square(image, left, top, side)).multi_face_landmarks or ()
        best, least = None, place.size / 2
        for mesh in found:
            self._met_a_face = True
            relative = np.array([[point.x, point.y] for point in mesh.landmark], np.float64)
            points = relative * float(side) + np.array([left, top], np.float64)
            distance = math.dist((points.min(axis=0) + points.max(axis=0)) / 2, (place.x, place.y))
            if distance < least:
                best, least = points, distance
        return best


def _face(points: NDArray[np.float64], score: float) -> Face:
    nose = _NOSE_WEIGHTS @ points[list(_NOSE)]
    brows = [points[list(brow)].mean(axis=0) for brow in (_LEFT_BROW, _RIGHT_BROW)]
    left, top = points.min(axis=0)
    right, bottom = points.max(axis=0)
    return Face((float(left), float(top), float(right), float(bottom)), score, np.round([*brows, nose]))


def _places(detection: Any, image: NDArray[np.uint8], left: int = 0, top: int = 0) -> Iterator[_Place]:
    """Where mediapipe's detector sees faces in a picture that lies at (left, top) in the frame."""
    height, width = image.shape[:2]
    for found in detection.process(image).detections or ():
        box = found.location_data.relative_bounding_box
        yield _Place(
            left + (box.xmin + box.width / 2) * width,
            top + (box.ymin + box.height / 2) * height,
            max(box.width * width, box.height * height),
            found.score[0],
        )


def _places_in_tiles(detection: Any, image: NDArray[np.uint8]) -> Iterator[_Place]:
    """As `_places`, sought in squares half as long as the frame that overlap by half."""
    height, width = image.shape[:2]
    side = -(-max(height, width) // 2)
    for top in _tile_starts(height, side):
        for left in _tile_starts(width, side):
            tile = np.ascontiguousarray(image[top : top + side, left : left + side])
            yield from _places(detection, tile, left, top)


def _tile_starts(length: int, side: int) -> list[int]:
    slack = max(length - side, 0)
    steps = -(-slack // (side // 2))
    return [slack * step // max(steps, 1) for step in range(steps + 1)]


def _square(image: NDArray[np.uint8], left: int, top: int, side: int) -> NDArray[np.uint8]:
    """A square cut from the frame, black beyond its border."""
    height, width = image.shape[:2]
    square = np.zeros((side, side, 3), np.uint8)
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + side, width), min(top + side, height)
    if x0 < x1 and y0 < y1:
        square[y0 - top : y1 - top, x0 - left : x1 - left] = image[y0:y1, x0:x1]
    return square


def import_solutions() -> Any:
    """mediapipe's models and what runs them. Raises ModelError that tells what is missing and the mend."""
    try:
        import mediapipe
    except ImportError as error:
        raise ModelError(f"face detector mediapipe: {import_mend('mediapipe', error)}") from error
    if not hasattr(mediapipe, "solutions"):
        raise ModelError(
            f"face detector mediapipe: release {mediapipe.__version__} holds no face models; "
            'pip install "lipstream[mediapipe]"'
        )
    return mediapipe.solutions
