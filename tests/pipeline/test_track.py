"""Shots, gaps and fades in the one stage whose state depends on order, and in whole runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from helpers.pipeline import FAST
from lipstream.face.detector import Face
from lipstream.face.people import Candidate
from lipstream.media.picture import RgbPicture
from lipstream.media.reader import Frame
from lipstream.pipeline.records import Aligned, Clip
from lipstream.pipeline.track import Seen, Tracked, tracked
from lipstream.pipeline.windows import gather
from lipstream.settings import SyncSettings

LANDMARKS = np.array([[40.0, 50.0], [90.0, 54.0], [64.0, 90.0]])
A, B = np.zeros((8, 8, 3), np.float32), np.full((8, 8, 3), 2, np.float32)
DARK, LIGHT = np.zeros((24, 24, 3), np.float32), np.full((24, 24, 3), 120, np.float32)


def clip(settings: SyncSettings, **more: Any) -> Clip:
    return Clip("clip", 200 * 200, [], [], 0.0, 0, settings, **more)


def seen(index: int, shift: float | None, picture: NDArray[np.float32] = DARK, look: NDArray[np.float32] = A) -> Seen:
    """A frame with a face moved to the right by `shift` px, or without."""
    frame = Frame(index, index, False, RgbPicture(np.zeros((2, 2, 3), np.uint8)))
    if shift is None:
        return Seen(frame, (), picture)
    face = Face((20.0 + shift, 20.0, 120.0 + shift, 120.0), 0.9, LANDMARKS + np.array([shift, 0]))
    return Seen(frame, (Candidate(face, look),), picture)


def run(*frames: Seen, settings: SyncSettings | None = None) -> list[Tracked]:
    return list(tracked(frames, 64, clip(settings or SyncSettings(tracking="people"))))


def weights(*shifts: float | None, cut: int | None = None) -> list[float | None]:
    """The weight of the generated face in each frame, None without one."""
    frames = [seen(i, shift, LIGHT if cut is not None and i >= cut else DARK) for i, shift in enumerate(shifts)]
    return [None if one.affine_matrix is None else one.weight for one in run(*frames)]


def test_short_gaps_are_bridged_and_long_ones_fade() -> None:
    assert weights(*[0.0] * 4, *[None] * 5, *[0.0] * 4) == [1.0] * 13
    assert weights(*[0.0] * 5, *[None] * 6, *[0.0] * 5) == [1, 1, 0.75, 0.5, 0.25, *[None] * 6, 0.25, 0.5, 0.75, 1, 1]
    assert weights(*[0.0] * 2, *[None] * 7, 0.0) == [0.5, 0.25, *[None] * 7, 0.25]
    assert weights(None, None, *[0.0] * 4) == [None, None, 0.25, 0.5, 0.75, 1]
    assert weights(*[0.0] * 4, None) == [1, 0.75, 0.5, 0.25, None]


def test_a_face_that_comes_back_elsewhere_fades_in_too() -> None:
    result = run(
        *[seen(i, 0) for i in range(4)], *[seen(i, None) for i in range(4, 12)], *[seen(i, 900) for i in range(12, 17)]
    )
    assert [one.begins for one in result].index(True) == 12
    assert [one.weight for one in result[12:]] == [0.25, 0.5, 0.75, 1, 1]


def test_nothing_is_bridged_or_faded_at_a_cut() -> None:
    assert weights(*[0.0] * 4, *[None] * 3, cut=4) == [1, 1, 1, 1, None, None, None]
    assert weights(*[0.0] * 4, None, None, *[0.0] * 4, cut=6) == [1, 0.75, 0.5, 0.25, None, None, 1, 1, 1, 1]
    assert weights(*[None] * 4, *[0.0] * 4, cut=4) == [None] * 4 + [1.0] * 4


def test_the_alignment_of_a_bridged_gap_lies_between_its_ends() -> None:
    gap = run(seen(0, 0), seen(1, 0), seen(2, None), seen(3, 8), seen(4, 8))
    full = run(seen(0, 0), seen(1, 0), seen(2, 4), seen(3, 8), seen(4, 8))
    for one, other in zip(gap, full, strict=True):
        assert one.affine_matrix is not None and np.allclose(one.affine_matrix, other.affine_matrix, atol=1e-4)


def test_smoothing_and_windows_begin_again_at_a_cut_a_jump_and_another_person() -> None:
    bent = LANDMARKS + np.array([[0, 0], [0, 0], [9, 0]])
    alone = run(Seen(seen(0, 0).frame, (Candidate(Face((20.0, 20.0, 120.0, 120.0), 0.9, bent), A),), DARK))[0]
    for picture, look, shift in ((LIGHT, A, 0.0), (DARK, B, 120.0), (DARK, A, 120.0)):
        face = Face((20.0 + shift, 20.0, 120.0 + shift, 120.0), 0.9, bent + np.array([shift, 0]))
        others = [Seen(seen(i, 0).frame, (Candidate(face, look),), picture) for i in range(4, 8)]
        n_kept = 0 if look is A else 6  # another person takes the place after a while
        others = [Seen(seen(i, 0).frame, others[0].candidates, picture) for i in range(4, 8 + n_kept)]
        result = run(*[seen(i, 0) for i in range(4)], *others)
        begun = [i for i, one in enumerate(result) if one.begins]
        assert begun == [4 + n_kept], (shift, begun)
        matrix, expected = result[begun[0]].affine_matrix, alone.affine_matrix
        assert matrix is not None and expected is not None
        assert np.allclose(matrix[:, :2], expected[:, :2], atol=1e-4)
        moved = expected[:, 2] - expected[:, :2] @ (shift, 0)
        assert np.allclose(matrix[:, 2], moved, atol=1e-2)


def test_as_published_the_largest_face_is_taken_and_nothing_begins() -> None:
    frames = [seen(i, 0 if i != 2 else None, LIGHT if i >= 3 else DARK) for i in range(6)]
    result = run(*frames, settings=SyncSettings())
    assert [one.affine_matrix is None for one in result] == [False, False, True, False, False, False]
    assert not any(one.begins for one in result) and all(one.weight == 1 for one in result)


@pytest.mark.parametrize(
    ("settings", "departs", "follows"),
    [
        (SyncSettings(), False, False),
        (SyncSettings(), True, True),
        (SyncSettings(preset="fast"), False, True),
        (SyncSettings(face="left"), False, True),
        (SyncSettings(tracking="off"), True, False),
        (SyncSettings(tracking="people"), False, True),
    ],
)
def test_exact_of_a_published_model_is_as_published(settings: SyncSettings, departs: bool, follows: bool) -> None:
    assert settings.follows(departs) is follows


def test_pauses_keep_frames_as_filmed() -> None:
    kept = np.array([1, 0.5, 0, 0, 1], np.float32)
    settings = SyncSettings(silence="keep")
    result = list(tracked([seen(i, 0) for i in range(5)], 64, clip(settings, kept=kept)))
    assert [one.affine_matrix is None for one in result] == [False, False, True, True, False]
    assert [one.weight for one in result] == [1, 0.5, 0, 0, 1]


def test_no_window_goes_over_a_beginning() -> None:
    frames = [Frame(i, i, False, RgbPicture(np.zeros((2, 2, 3), np.uint8))) for i in range(12)]
    crop = torch.zeros(3, 4, 4, dtype=torch.uint8)
    aligned = [Aligned(frame, np.eye(2, 3, dtype=np.float32), crop, begins=frame.index in (0, 5)) for frame in frames]
    windows = list(gather(aligned, [torch.zeros(1)] * 12, 4))
    assert [[a.frame.index for a in window.frames] for window in windows] == [
        [0, 1, 2, 3],
        [4],
        [5, 6, 7, 8],
        [9, 10, 11],
    ]


def test_settings_travel(tmp_path: Path) -> None:
    settings = SyncSettings.from_dict({**FAST.to_dict(), "face": "1,2@3", "tracking": "people"})
    assert (settings.face, settings.tracking) == ("1,2@3", "people")
