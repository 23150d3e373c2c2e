"""What is seen in a video before any work: a frame with its faces."""

from __future__ import annotations

import base64
import io
import itertools
import threading
from dataclasses import dataclass
from functools import lru_cache

import av
import numpy as np
from numpy.typing import NDArray

from lipstream.face.detector import Detector, Face, MultiFaceDetector
from lipstream.face.registry import make_detector
from lipstream.media.reader import VideoInfo, read_frames

_SEARCHED_S, _EVERY = 10, 12
_WIDTH = 640
_lock = threading.Lock()


@dataclass(frozen=True)
class SeenFace:
    """A face in a frame. left, top, width, height: of its box, as shares of the frame. point: its middle, px."""

    left: float
    top: float
    width: float
    height: float
    point: tuple[int, int]

    @property
    def setting(self) -> str:
        """What SyncSettings.face is for this person."""
        return f"{self.point[0]},{self.point[1]}"


@dataclass(frozen=True)
class Seen:
    """A frame of a video as a JPEG's data address, with its faces, the largest first; the first frame if it has none.

    searched_s: how much of the video was looked through.
    """

    picture: str
    faces: tuple[SeenFace, ...]
    searched_s: float


@lru_cache(maxsize=16)
def look_at(video: VideoInfo) -> Seen:
    """Return the first frame with a face among those looked at in the first seconds of a video. Raises InputError."""
    first: NDArray[np.uint8] | None = None
    n_frames = 0
    for frame in itertools.islice(read_frames(video.path), 0, 25 * _SEARCHED_S, _EVERY):
        n_frames += _EVERY
        faces = _faces_of(frame.image)
        if faces:
            return Seen(_jpeg(frame.image), tuple(_seen(face, frame.image) for face in faces), n_frames / 25)
        first = frame.image if first is None else first
    picture = "" if first is None else _jpeg(first)
    return Seen(picture, (), min(n_frames / 25, video.duration_s or _SEARCHED_S))


def _faces_of(image: NDArray[np.uint8]) -> list[Face]:
    with _lock:
        detector = _detector()
    if isinstance(detector, MultiFaceDetector):
        return detector.detect_all(image)
    face = detector.detect(image)
    return [] if face is None else [face]


@lru_cache(maxsize=1)
def _detector() -> Detector:
    return make_detector("auto", "cpu")


def _seen(face: Face, image: NDArray[np.uint8]) -> SeenFace:
    height, width = image.shape[:2]
    left, top, right, bottom = face.box
    left, right = max(0.0, left), min(width, right)
    top, bottom = max(0.0, top), min(height, bottom)
    point = round((left + right) / 2), round((top + bottom) / 2)
    return SeenFace(left / width, top / height, (right - left) / width, (bottom - top) / height, point)


def _jpeg(image: NDArray[np.uint8]) -> str:
    height, width = image.shape[:2]
    share = min(1.0, _WIDTH / width)
    size = max(2, round(width * share / 2) * 2), max(2, round(height * share / 2) * 2)
    content = io.BytesIO()
    with av.open(content, "w", format="mjpeg") as container:
        stream = container.add_stream("mjpeg", rate=1, options={"qscale": "5", "strict": "unofficial"})
        stream.width, stream.height, stream.pix_fmt = size[0], size[1], "yuvj420p"
        frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(*size, format="yuvj420p")
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"
