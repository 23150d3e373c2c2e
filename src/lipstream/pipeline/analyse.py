"""Analyse: find the face in every frame of a video once, and keep what was found as a table.

The table holds landmarks, not what a model makes of them, so that one table serves models of every resolution; they are
smoothed over time, in order, where it is used. Beside them it says which picture each frame shows, so that any segment
of the video can be read by itself (see media/segment.py).
"""

from __future__ import annotations

import hashlib
import json
import math
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from lipstream.errors import InputError, SettingsError
from lipstream.face.tracking import FaceTrack
from lipstream.media.atomic import check_beside, write_whole
from lipstream.media.loop import FrameIndex
from lipstream.media.reader import Frame, VideoInfo
from lipstream.media.segment import read_indexed, read_segment, source_frame
from lipstream.pipeline.clocks import Clocks, timed
from lipstream.pipeline.first_face import no_face_in, no_face_in_frame
from lipstream.pipeline.line import frames_in_flight, landmarks, search_first_face
from lipstream.pipeline.plan import Segment
from lipstream.pipeline.records import Components, Matrix
from lipstream.pipeline.threads import FrameBudget, ThreadGroup
from lipstream.settings import RuntimeSettings, SyncSettings

_FORMAT, _VERSION = "lipstream faces", 1
_KEY = "lipstream"
_NO_FACE = np.full((3, 2), np.nan)


@dataclass(frozen=True)
class FaceTable:
    """The face in each frame of a video at 25 frames per second.

    video_sha256: of the file. detector: its name. detect_every: see SyncSettings. is_whole: whether the table reaches
    the video's end. landmarks: (n, 3, 2) float64, NaN where a frame has no face. frames: which picture each one shows.
    """

    video_sha256: str
    detector: str
    detect_every: int
    is_whole: bool
    landmarks: NDArray[np.float64]
    frames: FrameIndex

    def __len__(self) -> int:
        return len(self.landmarks)

    def affine_matrices(self, resolution: int) -> Matrix:
        """Return the affine matrix of each frame to a crop of that size: (n, 2, 3) float32, NaN without a face."""
        track, matrices = FaceTrack(resolution), np.full((len(self), 2, 3), np.nan, np.float32)
        for index, points in enumerate(self.landmarks):
            matrix = track.update(index, False, None if np.isnan(points).any() else points)
            if matrix is not None:
                matrices[index] = matrix
        return matrices

    def shows_face(self, n_frames: int, settings: SyncSettings) -> NDArray[np.bool_]:
        """Return whether each of `n_frames` frames of the output shows a face; fewer where "trim" ends it before."""
        of_source = np.logical_not(np.isnan(self.landmarks).any(axis=(1, 2)))
        n_frames = min(n_frames, len(self)) if settings.loop == "trim" else n_frames
        return np.asarray(of_source[[source_frame(i, len(self), settings.loop) for i in range(n_frames)]])

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write the table as a safetensors file, whole or not at all. Raises OutputError."""
        path = Path(path)
        check_beside(path, inputs=(), overwrite=overwrite)
        described = {
            "format": _FORMAT,
            "version": _VERSION,
            "video_sha256": self.video_sha256,
            "detector": self.detector,
            "detect_every": self.detect_every,
            "is_whole": self.is_whole,
        }
        frames = {
            "ordinals": np.array(self.frames.ordinals, np.int64),
            "times": np.array(self.frames.times, np.int64),
            "checksums": np.array(self.frames.checksums, np.int64),
        }
        write_whole(path, save({"landmarks": self.landmarks, **frames}, {_KEY: json.dumps(described)}))

    @classmethod
    def load(cls, path: str | Path) -> FaceTable:
        """Read a table. Raises InputError for a file that is missing or is no table of this version."""
        path = Path(path)
        if not path.is_file():
            raise InputError("no such file", file=path, fix="make it with `lipstream analyse VIDEO -o FILE`")
        try:
            with safe_open(path, framework="np") as file:
                described = json.loads((file.metadata() or {})[_KEY])
                if (described["format"], described["version"]) != (_FORMAT, _VERSION):
                    raise ValueError(f"version {described['version']}, not {_VERSION}")
                return _table(described, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
            raise InputError(
                f"not a table of faces that this version of lipstream can read ({error})",
                file=path,
                fix="make it again with `lipstream analyse VIDEO -o FILE`",
            ) from error

    @property
    def sha256(self) -> str:
        """Digest of what was found."""
        return hashlib.sha256(self.landmarks.tobytes()).hexdigest()


def checked_table(
    faces: FaceTable | str | Path, video: Path, settings: SyncSettings, runtime: RuntimeSettings
) -> FaceTable:
    """Return a table, or the one in a file. It must be of this video, and of what the settings would find.

    Raises InputError, SettingsError.
    """
    table = faces if isinstance(faces, FaceTable) else FaceTable.load(faces)
    if sha256_of(video) != table.video_sha256:
        raise InputError(
            "the table of faces was made from another video, or this one has changed since",
            file=video,
            fix="make it again with `lipstream analyse VIDEO -o FILE`",
        )
    if not table.is_whole:
        raise InputError(
            f"the table of faces ends after {len(table)} frames, before the video does",
            file=video,
            fix="make it with `lipstream analyse VIDEO -o FILE`",
        )
    if settings.frames_per_detection() != table.detect_every:
        raise SettingsError(
            f"detect_every = {settings.frames_per_detection()}: the table of faces was made with {table.detect_every}",
            fix=f"use --detect-every {table.detect_every}, or make the table again",
            setting="detect_every",
        )
    if runtime.detector not in ("auto", table.detector):
        raise SettingsError(
            f"detector = {runtime.detector!r}: the table of faces was made with {table.detector}",
            fix="leave out --detector, or make the table again",
            setting="detector",
        )
    return table


def _table(described: dict[str, Any], tensors: dict[str, NDArray[Any]]) -> FaceTable:
    """Return the table of a file's content. Raises KeyError, ValueError, TypeError for one that is not a table's."""
    points = tensors["landmarks"]
    columns = [tensors[name] for name in ("ordinals", "times", "checksums")]
    if points.dtype != np.float64 or points.shape != (len(points), 3, 2) or not len(points):
        raise ValueError(f"landmarks of shape {points.shape}")
    if any(column.dtype != np.int64 or column.shape != (len(points),) for column in columns):
        raise ValueError("columns of different lengths")
    if np.isinf(points).any() or (columns[0] < 0).any() or (columns[2] < 0).any():
        raise ValueError("numbers out of range")
    frames = FrameIndex()
    for known, column in zip((frames.ordinals, frames.times, frames.checksums), columns, strict=True):
        known.extend(array(known.typecode, column.tolist()))
    return FaceTable(
        video_sha256=str(described["video_sha256"]),
        detector=str(described["detector"]),
        detect_every=int(described["detect_every"]),
        is_whole=bool(described["is_whole"]),
        landmarks=points,
        frames=frames,
    )


def analyse(
    components: Components,
    video: VideoInfo,
    settings: SyncSettings,
    clocks: Clocks,
    threads: ThreadGroup,
    n_frames: int = 2**62,
) -> FaceTable:
    """Find the face in each frame of a video, or in its first `n_frames`. Raises NoFaceError where none has one."""
    first_face = search_first_face(components, video, n_frames, _passing(settings), clocks, threads)
    frames = FrameIndex()
    images = timed(read_indexed(video.path, n_frames, frames), clocks.read)
    found = _landmarks(components, video, images, settings, first_face, clocks, threads)
    return table_of(video, components.detector.name, settings, [found], frames, n_frames)


def index_frames(
    components: Components,
    video: VideoInfo,
    n_frames: int,
    settings: SyncSettings,
    clocks: Clocks,
    threads: ThreadGroup,
) -> tuple[FrameIndex, int]:
    """Read up to `n_frames` frames; return which picture each shows, and the index of the first one with a face.

    That is what has to be done in order before any number of others `search` parts of the video.
    """
    first_face = search_first_face(components, video, n_frames, _passing(settings), clocks, threads)
    frames = FrameIndex()
    for _ in timed(read_indexed(video.path, n_frames, frames), clocks.read):
        threads.check()
    return frames, first_face


def search(
    components: Components,
    video: VideoInfo,
    frames: FrameIndex,
    part: Segment,
    settings: SyncSettings,
    first_face: int,
    clocks: Clocks,
    threads: ThreadGroup,
) -> NDArray[np.float64]:
    """Return the landmarks of frames part.start .. part.stop-1, as `analyse` finds them."""
    images = timed(read_segment(video.path, frames, part.start, part.stop, "trim"), clocks.read)
    return _landmarks(components, video, images, settings, first_face, clocks, threads)


def parts_of(n_frames: int, settings: SyncSettings, workers: int) -> list[Segment]:
    """Return parts of a video that may be searched by themselves, four for each of the workers."""
    step = settings.frames_per_detection()
    length = max(1, math.ceil(n_frames / (4 * workers * step))) * step
    return [Segment(start, min(start + length, n_frames)) for start in range(0, n_frames, length)]


def table_of(
    video: VideoInfo,
    detector: str,
    settings: SyncSettings,
    found: Sequence[NDArray[np.float64]],
    frames: FrameIndex,
    n_asked: int,
) -> FaceTable:
    """Return the table of what was found in a video's parts. n_asked: how many frames were asked for."""
    return FaceTable(
        video_sha256=sha256_of(video.path),
        detector=detector,
        detect_every=settings.frames_per_detection(),
        is_whole=len(frames) < n_asked,
        landmarks=np.concatenate(found),
        frames=frames,
    )


def _landmarks(
    components: Components,
    video: VideoInfo,
    images: Iterator[Frame],
    settings: SyncSettings,
    first_face: int,
    clocks: Clocks,
    threads: ThreadGroup,
) -> NDArray[np.float64]:
    found: list[NDArray[np.float64]] = []
    budget = FrameBudget(threads, frames_in_flight(components, video.width, video.height, settings))
    detect_every = settings.frames_per_detection()
    for _, points in landmarks(components, budget.spend(images), detect_every, first_face, clocks.detect, threads):
        found.append(_NO_FACE if points is None else np.asarray(points, np.float64))
        clocks.write.count(1)
        budget.give_back()
    threads.check()
    return np.stack(found)


def _passing(settings: SyncSettings) -> SyncSettings:
    """Return settings that let frames without a face pass: what becomes of them is decided where the table is used."""
    return replace(settings, no_face="pass")


def check_faces(name: Path, has_face: Iterable[bool], settings: SyncSettings) -> None:
    """Raise NoFaceError where no frame of the output has a face, or one has none and settings.no_face is "error"."""
    known = list(has_face)
    if settings.no_face == "error" and not all(known):
        raise no_face_in_frame(name, known.index(False))
    if not any(known):
        raise no_face_in(name, len(known))


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file as hex; computed once while the file stays as it is. Raises InputError."""
    try:
        stat = path.stat()
        return _sha256(path, stat.st_size, stat.st_mtime_ns)
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", file=path, fix="check the path") from error


@lru_cache(maxsize=256)
def _sha256(path: Path, size_bytes: int, modified_ns: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
