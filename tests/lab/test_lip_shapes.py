"""The benchmark of what lips do on which sound: what is said, when, and what counts as hit."""

from __future__ import annotations

import ctypes.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lipstream import InputError
from lipstream.bundled import sample

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def lip_shapes(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(FOLDER)
    import lip_shapes

    return lip_shapes


def test_a_name_of_grids_tells_the_sentence(lip_shapes: Any) -> None:
    assert lip_shapes.sentence(Path("s1/pbbm3n.mpg")) == "place blue by m, three now"
    assert lip_shapes.sentence(Path("1600ms_m1_s30_bwwy5n.mpg")) == "bin white with y, five now"
    with pytest.raises(InputError, match="name"):
        lip_shapes.sentence(Path("interview.mp4"))


def test_a_sentence_is_found_where_it_is_said_slower(lip_shapes: Any) -> None:
    said = np.random.default_rng(0).standard_normal((20, 40)).astype(np.float32)
    silence = np.zeros((20, 15), np.float32)
    recorded = np.concatenate((silence, np.repeat(said, 2, 1), silence), 1)
    onto = lip_shapes.warped(said, recorded)
    assert np.abs(onto - (15 + 2 * np.arange(40))).max() <= 1


def test_a_hit_is_a_mouth_of_the_shape_within_a_frame(lip_shapes: Any) -> None:
    opening, frames, spoken = np.array([0, 1, 1, 0, 1, 1, 1, 0, 1, 1.0]), [3, 7], slice(0, 10)
    shut = lip_shapes.SHAPES[0]
    assert shut.bound(opening) == 0.25

    def hits(made: Any) -> Any:
        return lip_shapes.hits(frames, lip_shapes.near(np.asarray(made), 0.25), spoken)

    assert hits(opening)[:2] == (2, 2)
    assert hits(np.roll(opening, 1))[0] == 2
    assert hits(np.ones(10))[0] == 0
    assert hits(np.zeros(10)) == (2, 2, 2.0)
    assert hits(np.where(np.arange(10) == 3, 0, 1.0)) == (1, 2, pytest.approx(0.6))
    assert hits(opening[:5])[1] == 1, "sounds after the end of the face's clip do not count"


def test_a_sound_without_its_shape_nearby_is_left_out(lip_shapes: Any) -> None:
    width = np.array([9, 9, 1, 9, 9, 9, 9, 9, 9, 9.0])
    assert lip_shapes.shaped(width, lip_shapes.SHAPES[2], [0, 4, 8]) == [2, 2]


@pytest.mark.skipif(ctypes.util.find_library("espeak-ng") is None, reason="espeak-ng is not installed")
def test_a_clip_is_measured_through_sync(tmp_path: Path) -> None:
    clip = tmp_path / "bbaf2n.mkv"
    joined = ("-i", sample.VIDEO, "-i", sample.SPEECH, "-c", "copy", "-t", "2", clip)
    if shutil.which("ffmpeg") is None:
        pytest.skip("ffmpeg is not installed")
    subprocess.run(["ffmpeg", "-loglevel", "error", *joined], check=True)
    done = subprocess.run(
        [sys.executable, FOLDER / "lip_shapes.py", "--videos", clip], capture_output=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split(" ", 1) for line in done.stdout.strip().splitlines()]
    assert [model for model, _ in lines] == ["tiny"] * 3
    shut, closed, rounded = (json.loads(found) for _, found in lines)
    # bin blue at f, two now; of one clip there is no other's sound
    assert [one["own"]["of"] + one["left_out"] for one in (shut, closed, rounded)] == [2, 1, 2]
    assert all(0 <= one["own"]["hit"] <= one["own"]["of"] for one in (shut, closed, rounded))
    assert shut["dubbed"] == {"hit": 0, "of": 0, "by_chance": 0.0}
