"""What following a person needs to know of each frame: all faces with their looks, and how much the picture changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipstream.face.detector import Face
from lipstream.face.people import Candidate
from lipstream.face.shots import Coarse, difference
from lipstream.pipeline.track import Seen

_NO_FACE = np.full((3, 2), np.nan)


@dataclass(frozen=True)
class Found:
    """What was found in a part of a video. landmarks: (n, 3, 2), of the largest faces, NaN without one.

    candidates, pictures: of each frame, where people are followed.
    """

    landmarks: NDArray[np.float64]
    candidates: tuple[tuple[Candidate, ...], ...] | None
    pictures: tuple[Coarse, ...] | None


class FoundFrames:
    """Gathers frames to what was found in a part."""

    def __init__(self, follows: bool) -> None:
        self._follows = follows
        self._landmarks: list[NDArray[np.float64]] = []
        self._candidates: list[tuple[Candidate, ...]] = []
        self._pictures: list[Coarse] = []

    def add(self, seen: Seen) -> None:
        """Take what one frame shows, without the frame."""
        first = seen.candidates[0].face.landmarks if seen.candidates else _NO_FACE
        self._landmarks.append(np.asarray(first, np.float64))
        if self._follows and seen.picture is not None:
            self._candidates.append(seen.candidates)
            self._pictures.append(seen.picture)

    def found(self) -> Found:
        """Return all of it."""
        landmarks = np.stack(self._landmarks)
        if not self._follows:
            return Found(landmarks, None, None)
        return Found(landmarks, tuple(self._candidates), tuple(self._pictures))


@dataclass(frozen=True)
class People:
    """All faces of a video's frames, from frame to frame, in each from the largest to the smallest.

    counts: (n,) int64, faces of each frame. boxes: (m, 4), scores: (m,), points: (m, 3, 2), all float64. looks: (m, 8,
    8, 3) float32. differences: (n,) float64, from the picture before, see `lipstream.face.shots`.
    """

    counts: NDArray[np.int64]
    boxes: NDArray[np.float64]
    scores: NDArray[np.float64]
    points: NDArray[np.float64]
    looks: NDArray[np.float32]
    differences: NDArray[np.float64]

    @cached_property
    def _ends(self) -> NDArray[np.int64]:
        return np.cumsum(self.counts)

    def candidates(self, frame: int) -> tuple[Candidate, ...]:
        """Return the faces of a frame."""
        stop = int(self._ends[frame])
        return tuple(
            Candidate(Face(tuple(self.boxes[i].tolist()), float(self.scores[i]), self.points[i]), self.looks[i])
            for i in range(stop - int(self.counts[frame]), stop)
        )


def people_of(found: Sequence[Found]) -> People | None:
    """Return the people of parts that follow one another; None where nobody is followed."""
    frames: list[tuple[Candidate, ...]] = []
    differences: list[float] = []
    last: Coarse | None = None
    for part in found:
        if part.candidates is None or part.pictures is None:
            return None
        frames += part.candidates
        for picture in part.pictures:
            differences.append(0.0 if last is None else difference(last, picture))
            last = picture
    faces = [candidate for candidates in frames for candidate in candidates]
    return People(
        counts=np.array([len(candidates) for candidates in frames], np.int64),
        boxes=np.array([one.face.box for one in faces], np.float64).reshape(-1, 4),
        scores=np.array([one.face.score for one in faces], np.float64),
        points=np.array([one.face.landmarks for one in faces], np.float64).reshape(-1, 3, 2),
        looks=np.array([one.look for one in faces], np.float32).reshape(-1, 8, 8, 3),
        differences=np.array(differences, np.float64),
    )


def people_from(tensors: Mapping[str, NDArray[Any]], n_frames: int) -> People | None:
    """Return the people among a file's tensors. Raises KeyError, ValueError for what is not whole."""
    if "counts" not in tensors:
        return None
    people = People(**{name: tensors[name] for name in People.__dataclass_fields__})
    n = int(people.counts.sum())
    shapes: dict[str, tuple[Any, tuple[int, ...]]] = {
        "counts": (np.int64, (n_frames,)),
        "boxes": (np.float64, (n, 4)),
        "scores": (np.float64, (n,)),
        "points": (np.float64, (n, 3, 2)),
        "looks": (np.float32, (n, 8, 8, 3)),
        "differences": (np.float64, (n_frames,)),
    }
    for name, (dtype, shape) in shapes.items():
        column = getattr(people, name)
        if column.dtype != dtype or column.shape != shape:
            raise ValueError(f"{name} of shape {column.shape}")
        if not np.isfinite(column).all() and name != "differences":
            raise ValueError(f"{name} are not finite")
    if (people.counts < 0).any():
        raise ValueError("numbers out of range")
    return people
