"""Work that is killed goes on where it was, through the real command line."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from helpers.cli import command, error_line, run
from helpers.pipeline import read_images, write_speech
from lipstream.bundled import sample

N_FRAMES = 60
FAST = ("--x264-preset", "ultrafast", "--crf", "10", "--detector", "mediapipe", "--device", "cpu", "--segment", "0.6")


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_speech(tmp_path_factory.mktemp("speech") / "speech.wav", N_FRAMES / 25, 16000)


@pytest.fixture(scope="module")
def whole(speech: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What an undisturbed run writes."""
    output = tmp_path_factory.mktemp("whole") / "out.mp4"
    done = run("sync", sample.VIDEO, speech, "-o", output, *FAST, "--device", "cpu,cpu", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["frames"] == N_FRAMES == len(read_images(output))
    return output.read_bytes()


@pytest.mark.parametrize(("n_pieces", "number"), [(2, signal.SIGKILL), (1, signal.SIGINT)])
def test_a_killed_run_goes_on(speech: Path, whole: bytes, tmp_path: Path, n_pieces: int, number: int) -> None:
    output, work = tmp_path / "out.mp4", tmp_path / "work"
    words = ("sync", sample.VIDEO, speech, "-o", output, *FAST, "--work", work)
    process = subprocess.Popen(command(*words), stderr=subprocess.PIPE, encoding="utf-8")
    until_s = time.monotonic() + 200
    while process.poll() is None and len(list(work.glob("*/pieces/0*.mp4"))) < n_pieces and time.monotonic() < until_s:
        time.sleep(0.01)
    time.sleep(np.random.default_rng(n_pieces).random() * 0.2)
    process.send_signal(number)
    process.communicate(timeout=60)
    before = {piece: piece.stat().st_mtime_ns for piece in work.glob("*/pieces/0*.mp4")}
    if process.returncode == 0:  # it was over before the signal came, and its folder is gone
        assert output.read_bytes() == whole
        return
    assert len(before) >= n_pieces
    assert not output.exists()
    done = run(*words, "--keep-work")
    assert done.returncode == 0, done.stderr
    assert output.read_bytes() == whole
    assert before.items() <= {piece: piece.stat().st_mtime_ns for piece in work.glob("*/pieces/0*.mp4")}.items()


def test_options_that_make_no_sense(speech: Path, tmp_path: Path) -> None:
    words = ("sync", sample.VIDEO, speech, "-o", tmp_path / "out.mp4")
    assert "there is no folder to keep" in error_line(run(*words, "--keep-work"), 2)
    assert "--segment -1: must be above 0" in error_line(run(*words, "--segment", "-1"), 2)
    assert "--device cpu,gpu: must be cpu, cuda" in error_line(run(*words, "--device", "cpu,gpu"), 2)
    assert "faces: no such file" in error_line(run(*words, "--faces", tmp_path / "faces"), 3)


def test_faces_are_found_once(speech: Path, whole: bytes, tmp_path: Path) -> None:
    table, work = tmp_path / "sample.faces", tmp_path / "work"
    done = run("analyse", sample.VIDEO, "-o", table, "--detector", "mediapipe", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "output": str(table),
        "frames": 125,
        "faces": {"frames_with_face": 125, "frames_without": 0},
        "detector": "mediapipe",
    }
    done = run("sync", sample.VIDEO, speech, "-o", tmp_path / "out.mp4", *FAST, "--faces", table, "--work", work)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.mp4").read_bytes() == whole
    assert not work.exists()
    assert "it already exists" in error_line(run("analyse", sample.VIDEO, "-o", table), 6)
