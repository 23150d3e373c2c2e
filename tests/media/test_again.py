"""Videos made longer: from the start again, and slower."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from helpers.media import number_of, numbered_image, write_numbered
from lipstream.errors import SettingsError
from lipstream.media.loop import read_looped
from lipstream.media.memory import Images
from lipstream.media.reader import Frame


def indices(frames: list[Frame]) -> list[int]:
    assert [frame.index for frame in frames] == [*range(len(frames))]
    return [frame.source_index for frame in frames]


def test_a_loop_begins_again_with_a_cross_fade(tmp_path: Path) -> None:
    clip = write_numbered(tmp_path / "clip.mp4", [*range(20)], Fraction(1, 25))
    images = [numbered_image(i) for i in range(20)]
    for frames in (list(read_looped(clip, 50, "loop")), list(Images(images, 50, "loop").frames())):
        assert indices(frames) == [*range(20), *range(5, 20), *range(5, 20)]
        assert [frame.is_repeat for frame in frames] == [False] * 20 + [True] * 30
        assert [number_of(frame.image) for frame in frames[:15]] == [*range(15)]
        assert [number_of(frame.image) for frame in frames[20:30]] == [*range(5, 15)]
        # Frame 17 is half itself, half frame 2: what both have is bright, what one of them has is in between.
        expected = (numbered_image(17).astype(int) + numbered_image(2)) / 2
        assert np.abs(frames[17].image - expected).mean() < 4
        for first, again in zip(frames[5:20], frames[20:35], strict=True):
            assert np.array_equal(first.image, again.image)


def test_nothing_is_blended_where_nothing_begins_again(tmp_path: Path) -> None:
    clip = write_numbered(tmp_path / "clip.mp4", [*range(20)], Fraction(1, 25))
    for n in (12, 20):
        frames = list(read_looped(clip, n, "loop"))
        assert [number_of(frame.image) for frame in frames] == [*range(n)]
    short = list(Images([numbered_image(i) for i in range(3)], 8, "loop").frames())
    assert [number_of(frame.image) for frame in short] == [0, 1, 2, 0, 1, 2, 0, 1]


def test_a_remapped_video_lasts_as_long_as_the_speech(tmp_path: Path) -> None:
    clip = write_numbered(tmp_path / "clip.mp4", [*range(20)], Fraction(1, 25))
    images = [numbered_image(i) for i in range(20)]
    for frames in (list(read_looped(clip, 50, "remap")), list(Images(images, 50, "remap").frames())):
        assert indices(frames) == [i * 20 // 50 for i in range(50)] == [number_of(frame.image) for frame in frames]
        assert sum(not frame.is_repeat for frame in frames) == 20
    assert [number_of(frame.image) for frame in read_looped(clip, 8, "remap")] == [*range(8)]


def test_images_that_come_once_cannot_begin_again_or_be_spread() -> None:
    for loop in ("loop", "remap"):
        with pytest.raises(SettingsError, match=f"loop = '{loop}'"):
            list(Images((numbered_image(i) for i in range(4)), 9, loop).frames())  # type: ignore[arg-type]


def test_frames_are_the_receivers_own() -> None:
    for loop in ("loop", "remap"):
        for frame in Images([numbered_image(i) for i in range(20)], 50, loop).frames():  # type: ignore[arg-type]
            assert frame.image.max() > 100 or frame.source_index == 0
            frame.image[:] = 0
