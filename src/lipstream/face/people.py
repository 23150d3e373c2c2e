"""Who is who over time: one person of a clip is chosen and followed by place, size and looks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lipstream.face.detector import Face

_LOOK_SIDE = 8
# From frame to frame: how far a face may move, in its own sizes, and by how much its size may change.
_NEAR, _NEAR_PER_MISSED, _ALIKE = 0.5, 0.1, 1.5
# Differences of looks: below the first two faces are taken for one person's, above the second for two people's.
_SAME_LOOK, _OTHER_LOOK = 0.4, 0.65
_KEPT = 0.9
# So many frames without the person, and another one may take the place where that is allowed.
_PATIENCE = 6

Look = NDArray[np.float32]


@dataclass(frozen=True)
class Candidate:
    """A face that a frame shows, and a small picture of it, (8, 8, 3) float32, whatever the light."""

    face: Face
    look: Look


@dataclass(frozen=True)
class FaceRule:
    """Which person is meant: by `order` ("largest", "left", "right"), by number from the left, or by a point in px.

    frame: the frame of the output's first pass in which `point` lies on the face; None: the first with a face there.
    """

    order: str = "largest"
    number: int | None = None
    point: tuple[float, float] | None = None
    frame: int | None = None

    @classmethod
    def parse(cls, text: str) -> FaceRule:
        """Read largest, left, right, N, X,Y or X,Y@FRAME, as SyncSettings.face has been checked."""
        if text.isalpha():
            return cls(text)
        if text.isdigit():
            return cls("number", number=int(text))
        point, _, frame = text.partition("@")
        x, y = map(float, point.split(","))
        return cls("point", None, (x, y), int(frame) if frame else None)

    def choose(self, candidates: Sequence[Candidate]) -> Candidate | None:
        """Return the candidate that is meant among those of one frame, the largest first; None if there is none."""
        from_left = sorted(candidates, key=lambda candidate: _centre(candidate.face)[0])
        if not from_left:
            return None
        if self.number is not None:
            return from_left[self.number] if self.number < len(from_left) else None
        if self.point is not None:
            return self._nearest(candidates, self.point)
        return {"largest": candidates[0], "left": from_left[0], "right": from_left[-1]}[self.order]

    def _nearest(self, candidates: Sequence[Candidate], point: tuple[float, float]) -> Candidate | None:
        def distance(candidate: Candidate) -> float:
            return math.dist(_centre(candidate.face), point) / _size(candidate.face)

        best = min(candidates, key=distance)
        return best if distance(best) < 1 else None


class Follower:
    """Chooses the same person in successive frames. Call it in frame order, from one thread."""

    def __init__(self, rule: FaceRule, person: Look | None = None, *, is_given: bool = False) -> None:
        """person: what somebody looks like who is known already. is_given: whoever comes has been chosen elsewhere."""
        self._rule, self._person, self._is_given = rule, person, is_given
        self._last: Candidate | None = None
        self._n_missed = 0

    def choose(self, candidates: Sequence[Candidate], begins: bool) -> tuple[Candidate | None, bool]:
        """Return the person's face, and whether it is in another place than before. begins: a shot begins here."""
        if begins:
            self._last = None
        chosen, has_moved = self._near(candidates), False
        if chosen is None:
            chosen, has_moved = self._elsewhere(candidates), self._person is not None
        if chosen is None:
            self._n_missed += 1
            return None, False
        known = self._person
        is_same = known is not None and look_difference(known, chosen.look) < _OTHER_LOOK
        self._person = chosen.look if known is None or not is_same else _KEPT * known + (1 - _KEPT) * chosen.look
        self._last, self._n_missed = chosen, 0
        return chosen, has_moved

    def _near(self, candidates: Sequence[Candidate]) -> Candidate | None:
        """Return the candidate where the person was last."""
        last = self._last
        if last is None:
            return None
        reach = _NEAR + _NEAR_PER_MISSED * min(self._n_missed, 10)
        size, centre = _size(last.face), _centre(last.face)

        def cost(candidate: Candidate) -> float:
            moved = math.dist(_centre(candidate.face), centre) / size
            ratio = abs(math.log(_size(candidate.face) / size))
            other_looks = look_difference(last.look, candidate.look)
            # Light may change from one frame to the next; that somebody else is in the very same place is unlikely.
            is_other = other_looks > _OTHER_LOOK and (len(candidates) > 1 or moved > reach / 2)
            return math.inf if is_other or moved > reach or ratio > math.log(_ALIKE) else moved + ratio + other_looks

        best = min(candidates, key=cost, default=None)
        return best if best is not None and cost(best) < math.inf else None

    def _elsewhere(self, candidates: Sequence[Candidate]) -> Candidate | None:
        """Return whoever looks like the person, or by the rule where nobody is known yet or may be replaced."""
        if self._person is None or self._is_given:
            return self._rule.choose(candidates)
        person = self._person
        best = min(candidates, key=lambda candidate: look_difference(person, candidate.look), default=None)
        is_first_choice = self._rule.order == "largest"
        if best is not None and look_difference(person, best.look) < (_SAME_LOOK if is_first_choice else _OTHER_LOOK):
            return best
        may_replace = is_first_choice and (self._last is None or self._n_missed >= _PATIENCE)
        return self._rule.choose(candidates) if may_replace else None


def candidates_of(image: NDArray[np.uint8], faces: Sequence[Face]) -> tuple[Candidate, ...]:
    """Return the faces of a uint8 RGB frame (h, w, 3) with what they look like."""
    return tuple(Candidate(face, _look(image, face)) for face in faces)


def look_difference(one: Look, other: Look) -> float:
    """Return how much two looks differ: about 0.2 for one person in successive frames, above 0.6 for most others."""
    return float(np.abs(one - other).mean())


def _look(image: NDArray[np.uint8], face: Face) -> Look:
    left, top, right, bottom = face.box
    height, width = image.shape[:2]
    across = np.linspace(left, right, 4 * _LOOK_SIDE + 2)[1:-1].clip(0, width - 1).astype(np.intp)
    down = np.linspace(top, bottom, 4 * _LOOK_SIDE + 2)[1:-1].clip(0, height - 1).astype(np.intp)
    around = image[down[0] : down[-1] + 1, across[0] : across[-1] + 1]
    sampled = around[(down - down[0])[:, None], across - across[0]].astype(np.float32)
    means = sampled.reshape(_LOOK_SIDE, 4, _LOOK_SIDE, 4, 3).mean((1, 3))
    # Neither brightness nor contrast of the light count.
    return np.asarray((means - means.mean()) / (means.std() + 1.0), np.float32)


def _centre(face: Face) -> tuple[float, float]:
    left, top, right, bottom = face.box
    return (left + right) / 2, (top + bottom) / 2


def _size(face: Face) -> float:
    left, top, right, bottom = face.box
    return max(right - left, bottom - top, 1.0)
