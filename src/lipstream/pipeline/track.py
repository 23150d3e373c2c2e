"""The one stage whose state depends on order: who is followed, where shots begin, gaps and fades, smoothing."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lipstream.face.people import Candidate, FaceRule, Follower
from lipstream.face.shots import Coarse, cuts_of, difference
from lipstream.face.square_pixels import landmarks_as_shown, matrix_of_frame
from lipstream.face.tracking import FaceTrack
from lipstream.media.reader import Frame
from lipstream.pipeline.first_face import no_face_in_frame
from lipstream.pipeline.records import Clip, Matrix

MAX_GAP = 5
"""Frames without a face, between frames with one, whose alignment is interpolated."""

FADE_FRAMES = 3
"""Frames over which the generated face fades in after frames without one, and out before them."""

LOOKAHEAD = 2 + (MAX_GAP + 1) + (FADE_FRAMES + 1)
"""Frames that this stage holds at most."""

Landmarks = NDArray[np.float64]


@dataclass(frozen=True)
class Seen:
    """A frame and the faces that it shows, from the largest to the smallest.

    picture: None where cuts do not count, or where the difference of the picture from the one before is known.
    """

    frame: Frame
    candidates: tuple[Candidate, ...]
    picture: Coarse | None
    difference: float | None = None


@dataclass(frozen=True)
class Tracked:
    """A frame and its affine matrix to the crop, None without a face.

    begins: no window may go on from the frame before; is_cut: because another shot begins. weight: of the generated
    face, below 1 where it fades.
    """

    frame: Frame
    affine_matrix: Matrix | None
    begins: bool = False
    is_cut: bool = False
    weight: float = 1.0


@dataclass(frozen=True)
class _Chosen:
    frame: Frame
    landmarks: Landmarks | None
    begins: bool = False
    is_cut: bool = False


def tracked(found: Iterable[Seen], resolution: int, clip: Clip, *, is_given: bool = False) -> Iterator[Tracked]:
    """Yield the frames with their alignment, smoothed over time.

    is_given: the detector, or the caller through it, has chosen the face of each frame already.
    """
    follows = clip.settings.follows(clip.model_departs)
    rule = FaceRule.parse(clip.settings.face or "largest")
    follower = Follower(rule, clip.person, is_given=is_given)
    chosen = _followed(found, follower) if follows else _largest(found)
    aligned = _aligned(_bridged(chosen) if follows else chosen, resolution, clip)
    faded = _faded(aligned) if follows else aligned
    return faded if clip.kept is None else _kept(faded, clip.kept)


def _largest(found: Iterable[Seen]) -> Iterator[_Chosen]:
    for seen in found:
        face = seen.candidates[0].face if seen.candidates else None
        yield _Chosen(seen.frame, None if face is None else face.landmarks)


def _followed(found: Iterable[Seen], follower: Follower) -> Iterator[_Chosen]:
    for seen, is_cut in cuts_of(_differences(found)):
        chosen, has_moved = (None, False) if seen.frame.is_repeat else follower.choose(seen.candidates, is_cut)
        landmarks = None if chosen is None else chosen.face.landmarks
        yield _Chosen(seen.frame, landmarks, is_cut or has_moved, is_cut)


def _differences(found: Iterable[Seen]) -> Iterator[tuple[Seen, float]]:
    last: Coarse | None = None
    for seen in found:
        if seen.difference is not None:
            yield seen, seen.difference
        elif seen.picture is not None:
            yield seen, 0.0 if last is None else difference(last, seen.picture)
            last = seen.picture


def _bridged(chosen: Iterable[_Chosen]) -> Iterator[_Chosen]:
    """Interpolate the landmarks of short gaps between frames of one shot."""
    before: Landmarks | None = None
    gap: list[_Chosen] = []
    for one in chosen:
        is_gap = one.landmarks is None and not one.frame.is_repeat
        if is_gap and not one.begins and before is not None and len(gap) < MAX_GAP:
            gap.append(one)
            continue
        if gap and before is not None and one.landmarks is not None and not one.begins:
            after, n_steps = one.landmarks, len(gap) + 1
            for step, missing in enumerate(gap, 1):
                yield replace(missing, landmarks=before + (after - before) * (step / n_steps))
        else:
            yield from gap
        gap.clear()
        before = one.landmarks
        yield one
    yield from gap


def _aligned(chosen: Iterable[_Chosen], resolution: int, clip: Clip) -> Iterator[Tracked]:
    track = FaceTrack(resolution)
    for one in chosen:
        frame, landmarks = one.frame, one.landmarks
        if one.begins:
            track.begin()
        shown = None if landmarks is None else landmarks_as_shown(landmarks, clip.pixel_aspect)
        matrix = track.update(frame.source_index, frame.is_repeat, shown)
        if matrix is None and clip.settings.no_face == "error":
            raise no_face_in_frame(clip.name, frame.index)
        of_frame = None if matrix is None else matrix_of_frame(matrix, clip.pixel_aspect)
        yield Tracked(frame, of_frame, one.begins, one.is_cut)


def _faded(aligned: Iterable[Tracked]) -> Iterator[Tracked]:
    """Let the generated face fade where frames without one follow or went before in the same shot."""
    waiting: deque[Tracked] = deque()
    n_since = FADE_FRAMES + 1  # frames since the last one without a face
    for one in aligned:
        if one.affine_matrix is None and not one.is_cut:
            for distance, earlier in enumerate(reversed(waiting), 1):
                if earlier.affine_matrix is None or distance > FADE_FRAMES:
                    break
                waiting[-distance] = replace(earlier, weight=min(earlier.weight, distance / (FADE_FRAMES + 1)))
                if earlier.is_cut:
                    break
        if one.affine_matrix is None:
            n_since = 0
        else:
            n_since = FADE_FRAMES + 1 if one.is_cut else n_since + 1
            if n_since <= FADE_FRAMES:
                one = replace(one, weight=n_since / (FADE_FRAMES + 1))
        waiting.append(one)
        del one
        if len(waiting) > FADE_FRAMES:
            yield waiting.popleft()
    yield from waiting


def _kept(faded: Iterable[Tracked], weights: NDArray[np.float32]) -> Iterator[Tracked]:
    """Leave frames as filmed where the weight of the generated face is to be 0."""
    for one in faded:
        weight = min(one.weight, float(weights[one.frame.index]))
        yield replace(one, weight=weight, affine_matrix=one.affine_matrix if weight > 0 else None)
