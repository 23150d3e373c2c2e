"""The benchmark of bilabial closures: what is said, when, and what counts as hit."""

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
def closures(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(FOLDER)
    import closures

    return closures


def test_a_name_of_grids_tells_the_sentence(closures: Any) -> None:
    assert closures.sentence(Path("s1/pbbm3n.mpg")) == "place blue by m, three now"
    assert closures.sentence(Path("1600ms_m1_s30_bwwy5n.mpg")) == "bin white with y, five now"
    with pytest.raises(InputError, match="name"):
        closures.sentence(Path("interview.mp4"))


def test_a_sentence_is_found_where_it_is_said_slower(closures: Any) -> None:
    said = np.random.default_rng(0).standard_normal((20, 40)).astype(np.float32)
    silence = np.zeros((20, 15), np.float32)
    recorded = np.concatenate((silence, np.repeat(said, 2, 1), silence), 1)
    onto = closures.warped(said, recorded)
    assert np.abs(onto - (15 + 2 * np.arange(40))).max() <= 1


def test_a_hit_is_a_mouth_that_is_shut_within_a_frame(closures: Any) -> None:
    opening = np.array([0, 1, 1, 0, 1, 1, 1, 0, 1, 1.0])
    clip = closures.Clip(Path("clip"), [], opening, [3, 7], 0, slice(0, 10))
    assert closures.hits(clip, opening)[0] == 2
    assert closures.hits(clip, np.roll(opening, 1))[0] == 2
    assert closures.hits(clip, np.ones(10))[0] == 0
    always, by_chance = closures.hits(clip, np.zeros(10))
    assert (always, by_chance) == (2, 2.0)
    assert closures.hits(clip, np.where(np.arange(10) == 3, 0, 1.0)) == (1, pytest.approx(0.6))


@pytest.mark.skipif(ctypes.util.find_library("espeak-ng") is None, reason="espeak-ng is not installed")
def test_a_clip_is_measured_through_sync(tmp_path: Path) -> None:
    clip = tmp_path / "bbaf2n.mkv"
    joined = ("-i", sample.VIDEO, "-i", sample.SPEECH, "-c", "copy", "-t", "2", clip)
    if shutil.which("ffmpeg") is None:
        pytest.skip("ffmpeg is not installed")
    subprocess.run(["ffmpeg", "-loglevel", "error", *joined], check=True)
    done = subprocess.run(
        [sys.executable, FOLDER / "closures.py", "--videos", clip], capture_output=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    model, found = done.stdout.strip().split(" ", 1)
    measured = json.loads(found)
    assert model == "tiny"
    assert measured["closures"] + measured["left_out"] == 2  # bin blue
    assert 0 <= measured["hit"] <= measured["closures"]
