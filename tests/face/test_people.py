"""One person is followed, among several and over cuts; shot boundaries."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from lipstream.errors import SettingsError
from lipstream.face.detector import Face
from lipstream.face.people import Candidate, FaceRule, Follower, candidates_of, look_difference
from lipstream.face.shots import coarse_picture, with_cuts
from lipstream.settings import SyncSettings

RED, BLUE = np.array([200, 60, 40]), np.array([40, 60, 200])


def portrait(seed: int) -> NDArray[np.uint8]:
    """A picture (100, 100, 3) that looks like nobody else's."""
    coarse = np.random.default_rng(seed).integers(40, 220, (5, 5, 3))
    return np.repeat(np.repeat(coarse, 20, 0), 20, 1).astype(np.uint8)


def scene(*people: tuple[int, int, float], light: float = 1.0) -> tuple[Candidate, ...]:
    """The candidates of a frame with people (who, left edge, score), the first being the largest."""
    image = np.full((120, 700, 3), 90, np.uint8)
    faces = []
    for who, left, size in people:
        image[10:110, left : left + 100] = portrait(who)
        faces.append(Face((left, 10.0, left + 100 * size, 10 + 100 * size), 0.9, np.zeros((3, 2))))
    return candidates_of(np.round(image * light).astype(np.uint8), faces)


def followed(follower: Follower, *frames: tuple[Candidate, ...], cuts: tuple[int, ...] = ()) -> list[int | None]:
    """The left edges of the faces chosen in each frame."""
    chosen = [follower.choose(candidates, i in cuts)[0] for i, candidates in enumerate(frames)]
    return [None if one is None else int(one.face.box[0]) for one in chosen]


def test_a_person_is_kept_whoever_is_larger() -> None:
    one, other = (1, 50, 1.0), (2, 400, 1.0)
    frames = [scene(one, other), scene(other, one), scene(one, other), scene(other, one)]
    assert followed(Follower(FaceRule()), *frames) == [50] * 4
    assert followed(Follower(FaceRule("right")), *frames) == [400] * 4
    assert followed(Follower(FaceRule("left")), *frames) == [50] * 4
    assert followed(Follower(FaceRule("number", number=1)), *frames) == [400] * 4
    assert followed(Follower(FaceRule("number", number=2)), *frames) == [None] * 4
    assert followed(Follower(FaceRule("point", None, (440.0, 60.0))), *frames) == [400] * 4


def test_people_who_cross_are_known_by_their_looks() -> None:
    frames = [scene((1, 200 + 20 * i, 1.0), (2, 420 - 20 * i, 1.0)) for i in range(12) if abs(220 - 40 * i) >= 100]
    assert followed(Follower(FaceRule("left")), *frames) == [
        200 + 20 * i for i in range(12) if abs(220 - 40 * i) >= 100
    ]


def test_after_a_cut_it_is_the_same_person_or_the_largest() -> None:
    wide, close = scene((1, 50, 1.0), (2, 400, 1.0)), scene((2, 200, 1.0))
    back = scene((2, 300, 1.0), (1, 90, 1.0), light=0.6)
    assert followed(Follower(FaceRule()), wide, wide, close, back, cuts=(2, 3)) == [50, 50, 200, 300]
    assert followed(Follower(FaceRule("left")), wide, wide, close, back, cuts=(2, 3)) == [50, 50, None, 90]


def test_a_person_who_leaves_is_replaced_only_after_a_while() -> None:
    both, one = scene((1, 50, 1.0), (2, 400, 1.0)), scene((2, 400, 1.0))
    chosen = followed(Follower(FaceRule()), both, *[one] * 8)
    assert chosen[:7] == [50, *[None] * 6] and chosen[7:] == [400, 400]
    assert followed(Follower(FaceRule("left")), both, *[one] * 30) == [50, *[None] * 30]


def test_a_jump_of_the_face_begins_again() -> None:
    follower = Follower(FaceRule())
    assert follower.choose(scene((1, 50, 1.0)), False)[1] is False
    chosen, has_moved = follower.choose(scene((1, 300, 1.0)), False)
    assert chosen is not None and has_moved


def test_a_face_that_was_chosen_elsewhere_is_taken_as_it_comes() -> None:
    frames = [scene((1, 50, 1.0)), scene((2, 400, 1.0)), scene((1, 60, 1.0)), ()]
    assert followed(Follower(FaceRule(), is_given=True), *frames) == [50, 400, 60, None]


def test_looks_do_not_depend_on_the_light() -> None:
    (bright,), (dark,), (other,) = scene((1, 50, 1.0)), scene((1, 50, 1.0), light=0.4), scene((2, 50, 1.0))
    assert look_difference(bright.look, dark.look) < 0.2 < 0.6 < look_difference(bright.look, other.look)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("largest", FaceRule()),
        ("2", FaceRule("number", 2)),
        ("10.5,20", FaceRule("point", None, (10.5, 20.0))),
        ("1,2@33", FaceRule("point", None, (1.0, 2.0), 33)),
    ],
)
def test_who_is_meant_is_read(text: str, rule: FaceRule) -> None:
    assert FaceRule.parse(str(SyncSettings(face=text).face)) == rule


@pytest.mark.parametrize("text", ["", "middle", "-1", "1,2,3", "1,2@x", "1;2", "nan,1", "1,2@-3", "٣"])
def test_nobody_in_particular_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="face = "):
        SyncSettings(face=text)
    with pytest.raises(SettingsError, match="needs tracking"):
        SyncSettings(face="left", tracking="off")


def cuts_in(images: list[NDArray[np.uint8]]) -> list[int]:
    return [i for i, is_cut in with_cuts((i, coarse_picture(image)) for i, image in enumerate(images)) if is_cut]


def test_cuts_are_found_and_pans_flashes_and_fades_are_not() -> None:
    wide = np.concatenate([portrait(seed) for seed in range(12)], 1)
    still = [portrait(1)] * 6
    assert cuts_in([*still, *[portrait(2)] * 6, *still]) == [6, 12]
    assert cuts_in([wide[:, 15 * i : 15 * i + 200] for i in range(40)]) == []
    assert cuts_in([np.round(portrait(1) * light).astype(np.uint8) for light in np.linspace(1, 0, 12)]) == []
    assert cuts_in(still) == [] and cuts_in(still[:1]) == [] and cuts_in([]) == []
    tiny = [np.zeros((2, 3, 3), np.uint8), np.full((2, 3, 3), 200, np.uint8), np.full((2, 3, 3), 200, np.uint8)]
    assert cuts_in(tiny) == [1]
