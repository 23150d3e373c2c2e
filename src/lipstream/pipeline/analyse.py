"""Analyse: find the face in every frame of a video once, and keep what was found as a table.

The table holds faces, not what a model makes of them, so that one table serves models of every resolution; they are
followed and smoothed over time, in order, where it is used. Beside them it says which picture each frame shows, so that
any segment of the video can be read by itself (see media/segment.py).
"""

from __future__ import annotations

import hashlib
import json
import math
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from lipstream.errors import InputError, SettingsError
from lipstream.face.detector import Face
from lipstream.face.people import Candidate
from lipstream.face.square_pixels import on_square_pixels
from lipstream.media.atomic import check_beside, write_whole
from lipstream.media.loop import FrameIndex
from lipstream.media.reader import Frame, VideoInfo
from lipstream.media.segment import read_indexed, read_segment
from lipstream.pipeline.clocks import Clocks, timed
from lipstream.pipeline.detect import seen_faces
from lipstream.pipeline.line import frames_in_flight, search_first_face
from lipstream.pipeline.people_table import Found, FoundFrames, People, people_from, people_of
from lipstream.pipeline.plan import Segment
from lipstream.pipeline.records import Components
from lipstream.pipeline.threads import FrameBudget, ThreadGroup
from lipstream.settings import FRAME_RATE_HZ, Deinterlace, RuntimeSettings, SyncSettings

_FORMAT, _VERSION = "lipstream faces", 3
_KEY = "lipstream"
_NO_LOOK = np.zeros((8, 8, 3), np.float32)


@dataclass(frozen=True)
class FaceTable:
    """The faces in each frame of a video at `frame_rate` frames per second.

    video_sha256: of the file. detector: its name. detect_every, deinterlace: see SyncSettings. is_whole: whether the
    table reaches the video's end. landmarks: of the largest face, (n, 3, 2) float64, NaN where a frame has none.
    frames: which picture each one shows. people: all faces, for following one person; None where none is followed.
    """

    video_sha256: str
    detector: str
    detect_every: int
    is_whole: bool
    landmarks: NDArray[np.float64]
    frames: FrameIndex
    frame_rate: Fraction = Fraction(FRAME_RATE_HZ)
    deinterlace: Deinterlace = "auto"
    people: People | None = None

    def __len__(self) -> int:
        return len(self.landmarks)

    def shows_face(self, n_frames: int) -> NDArray[np.bool_]:
        """Return whether each of the first `n_frames` frames of the video shows a face; fewer where it ends before."""
        return np.asarray(np.logical_not(np.isnan(self.landmarks[:n_frames]).any(axis=(1, 2))))

    def candidates(self, frame: int) -> tuple[Candidate, ...]:
        """Return the faces of a frame, from the largest to the smallest; only that one where nobody is followed."""
        if self.people is not None:
            return self.people.candidates(frame)
        points = self.landmarks[frame]
        return () if np.isnan(points).any() else (Candidate(Face((0.0, 0.0, 0.0, 0.0), 1.0, points), _NO_LOOK),)

    def difference_before(self, frame: int) -> float:
        """Return how much a frame differs from the one before, see `lipstream.face.shots`; 0 if nobody is followed."""
        return 0.0 if self.people is None else float(self.people.differences[frame])

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write the table as a safetensors file, whole or not at all. Raises OutputError."""
        check_beside(Path(path), inputs=(), overwrite=overwrite)
        write_whole(Path(path), self.to_bytes())

    def to_bytes(self) -> bytes:
        """Return what `save` writes."""
        described = {
            "format": _FORMAT,
            "version": _VERSION,
            "video_sha256": self.video_sha256,
            "detector": self.detector,
            "detect_every": self.detect_every,
            "is_whole": self.is_whole,
            "frame_rate": str(self.frame_rate),
            "deinterlace": self.deinterlace,
        }
        frames = {
            "ordinals": np.array(self.frames.ordinals, np.int64),
            "times": np.array(self.frames.times, np.int64),
            "checksums": np.array(self.frames.checksums, np.int64),
        }
        people = {} if self.people is None else _columns(self.people)
        return save({"landmarks": self.landmarks, **frames, **people}, {_KEY: json.dumps(described)})

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
        digest = hashlib.sha256(self.landmarks.tobytes())
        for column in () if self.people is None else _columns(self.people).values():
            digest.update(column.tobytes())
        return digest.hexdigest()


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
    if settings.deinterlace != table.deinterlace:
        raise SettingsError(
            f"deinterlace = {settings.deinterlace!r}: the table of faces was made with {table.deinterlace!r}",
            fix=f"use --deinterlace {table.deinterlace}, or make the table again",
            setting="deinterlace",
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
        frame_rate=Fraction(described["frame_rate"]),
        deinterlace=described["deinterlace"],
        people=people_from(tensors, len(points)),
    )


def _columns(people: People) -> dict[str, NDArray[Any]]:
    return {one.name: getattr(people, one.name) for one in fields(people)}


def for_video(components: Components, video: VideoInfo) -> Components:
    """Return components whose detector takes frames of this video."""
    return replace(components, detector=on_square_pixels(components.detector, video.pixel_aspect))


def analyse(
    components: Components,
    video: VideoInfo,
    settings: SyncSettings,
    clocks: Clocks,
    threads: ThreadGroup,
    n_frames: int = 2**62,
) -> FaceTable:
    """Find the faces in each frame of a video, or in its first `n_frames`. Raises NoFaceError where none has one."""
    components, rate = for_video(components, video), rate_of(components, video, settings)
    first_face = search_first_face(components, video, n_frames, _passing(settings), rate, clocks, threads)
    frames = FrameIndex()
    images = timed(read_indexed(video.path, n_frames, frames, rate, settings.deinterlace), clocks.read)
    found = _found(components, video, images, settings, first_face, clocks, threads)
    return table_of(video, components.detector.name, settings, [found], frames, n_frames, rate)


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
    components, rate = for_video(components, video), rate_of(components, video, settings)
    first_face = search_first_face(components, video, n_frames, _passing(settings), rate, clocks, threads)
    frames = FrameIndex()
    for _ in timed(read_indexed(video.path, n_frames, frames, rate, settings.deinterlace), clocks.read):
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
) -> Found:
    """Return what is in frames part.start .. part.stop-1, as `analyse` finds it."""
    components = for_video(components, video)
    images = read_segment(video.path, frames, part.start, part.stop, "trim", deinterlace=settings.deinterlace)
    return _found(components, video, timed(images, clocks.read), settings, first_face, clocks, threads)


def parts_of(n_frames: int, settings: SyncSettings, workers: int) -> list[Segment]:
    """Return parts of a video that may be searched by themselves, four for each of the workers."""
    step = settings.frames_per_detection()
    length = max(1, math.ceil(n_frames / (4 * workers * step))) * step
    return [Segment(start, min(start + length, n_frames)) for start in range(0, n_frames, length)]


def table_of(
    video: VideoInfo,
    detector: str,
    settings: SyncSettings,
    found: Sequence[Found],
    frames: FrameIndex,
    n_asked: int,
    frame_rate: Fraction = Fraction(FRAME_RATE_HZ),
) -> FaceTable:
    """Return the table of what was found in a video's parts. n_asked: how many frames were asked for."""
    return FaceTable(
        video_sha256=sha256_of(video.path),
        detector=detector,
        detect_every=settings.frames_per_detection(),
        is_whole=len(frames) < n_asked,
        landmarks=np.concatenate([part.landmarks for part in found]),
        frames=frames,
        frame_rate=frame_rate,
        deinterlace=settings.deinterlace,
        people=people_of(found),
    )


def _found(
    components: Components,
    video: VideoInfo,
    images: Iterator[Frame],
    settings: SyncSettings,
    first_face: int,
    clocks: Clocks,
    threads: ThreadGroup,
) -> Found:
    departs = components.model.config.departs
    found = FoundFrames(settings.follows(departs))
    budget = FrameBudget(threads, frames_in_flight(components, video.picture_bytes, settings))
    frames = budget.spend(images)
    for seen in seen_faces(components, frames, settings, departs, first_face, clocks.detect, threads):
        found.add(seen)
        clocks.write.count(1)
        del seen
        budget.give_back()
    threads.check()
    return found.found()


def rate_of(components: Components, video: VideoInfo, settings: SyncSettings) -> Fraction:
    """Return the frames a second of a run with this video."""
    return settings.rate_hz(video.nominal_rate, model_departs=components.model.config.departs)


def _passing(settings: SyncSettings) -> SyncSettings:
    """Return settings that let frames without a face pass: what becomes of them is decided where the table is used."""
    return replace(settings, no_face="pass")


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
