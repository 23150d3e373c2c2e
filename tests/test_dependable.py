"""Names, processes and ends: what happens at the edges of a run, tried with the bundled model on real files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from helpers.cli import command, error_line, run
from helpers.media import clicks, smooth_image, write_wav
from helpers.pipeline import write_clip
from lipstream import LipSync, OutputError
from lipstream.bundled import sample
from lipstream.media.images import write_png
from lipstream.media.output_file import check_output, hidden_name
from lipstream.media.reader import read_frames


@pytest.fixture(scope="module")
def still(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stills") / "still.png"
    write_png(path, next(read_frames(sample.VIDEO)).image)
    return path


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_wav(tmp_path_factory.mktemp("speech") / "speech.wav", clicks(0.2, 16000), 16000)


@pytest.mark.parametrize("name", ["a" * 251 + ".mp4", "ü" * 125 + ".mp4", "日" * 83 + ".mkv"])
def test_names_as_long_as_a_file_system_allows_are_written(name: str, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / name, [smooth_image(32, 32)] * 2)
    assert [path.name for path in tmp_path.iterdir()] == [name] and clip.stat().st_size > 0
    hidden = hidden_name(tmp_path / name).name
    assert len(os.fsencode(hidden)) <= 255 and hidden.startswith(f".{name[:60]}")
    assert hidden.encode()  # no half of a character


def test_longer_names_are_refused_before_anything_is_loaded(still: Path, speech: Path, tmp_path: Path) -> None:
    for output in (tmp_path / ("a" * 252 + ".mp4"), tmp_path / ("ü" * 126 + ".mp4")):
        with pytest.raises(OutputError, match="longer than 255 bytes"):
            check_output(output)
        line = error_line(run("sync", still, speech, "-o", output), 6)
        assert "longer than 255 bytes" in line
    assert "no such file" in error_line(run("sync", tmp_path / ("b" * 300), speech), 3)


def test_a_name_that_the_terminal_cannot_print_is_a_success(still: Path, speech: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "HF_ENDPOINT": "http://127.0.0.1:9"}
    output = tmp_path / "日本-\udcff😀.mp4"
    words = command("sync", still, speech, "-o", output, "-q", "--json")
    done = subprocess.run(words, capture_output=True, timeout=240, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert output.stat().st_size > 0


FORKED = """
import os, signal, sys
from lipstream import LipSync, SettingsError
sync = LipSync.load("tiny", device="cpu", detector="mediapipe")
child = os.fork()
if child == 0:
    signal.alarm(60)
    errors = []
    for call in (lambda: sync(*sys.argv[1:4]), lambda: LipSync.load("tiny", device="cpu")):
        try:
            call()
        except SettingsError as error:
            errors.append(str(error))
    os._exit(0 if len(errors) == 2 and all("forked" in error for error in errors) else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_process_forked_after_loading_says_so_at_once(still: Path, speech: Path, tmp_path: Path) -> None:
    files = [str(still), str(speech), str(tmp_path / "out.mp4")]
    words = [sys.executable, "-W", "ignore", "-c", FORKED, *files]
    done = subprocess.run(words, capture_output=True, encoding="utf-8", timeout=200, check=False)
    assert done.returncode == 0, done.stderr


def test_jobs_in_one_folder_do_not_disturb_one_another(still: Path, speech: Path, tmp_path: Path) -> None:
    jobs = [subprocess.Popen(command("sync", still, speech, "-o", tmp_path / f"{i}.mp4", "-q")) for i in range(3)]
    assert [job.wait(280) for job in jobs] == [0] * 3
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{i}.mp4" for i in range(3)]
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


def test_threads_share_one_lipsync(still: Path, speech: Path, tmp_path: Path) -> None:
    with LipSync.load("tiny", device="cpu", detector="mediapipe") as sync, ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(sync, still, speech, tmp_path / f"{i}.mp4") for i in range(4)]
        assert [job.result(200).frames for job in jobs] == [5] * 4
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1 and len(list(tmp_path.iterdir())) == 4


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_killed_run_loses_nothing_that_was_there(still: Path, tmp_path: Path) -> None:
    speech = write_wav(tmp_path / "long.wav", clicks(60, 16000), 16000)
    output = tmp_path / "out.mp4"
    output.write_bytes(b"what was there")
    job = subprocess.Popen(command("sync", still, speech, "-o", output, "--overwrite", "-q"))
    end_s = time.monotonic() + 120
    while not list(tmp_path.glob(".out.*.part.mp4")) and job.poll() is None and time.monotonic() < end_s:
        time.sleep(0.05)
    job.kill()
    job.wait(60)
    assert output.read_bytes() == b"what was there"
    assert len(list(tmp_path.glob(".out.*"))) == 1  # the hidden file stays: nobody is left to remove it


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_line_and_leaves_nothing(still: Path, speech: Path, tmp_path: Path) -> None:
    words = ["bash", "-c", 'ulimit -f 1; exec "$@"', "bash", *command("sync", still, speech, "-o", tmp_path / "o.mp4")]
    done = subprocess.run(words, capture_output=True, encoding="utf-8", timeout=240, check=False)
    assert done.returncode != 0 and list(tmp_path.iterdir()) == []
    assert "Traceback" not in done.stderr


def test_settings_of_every_new_kind_are_taken_by_the_command_line(still: Path, speech: Path, tmp_path: Path) -> None:
    options = ["--silence", "keep", "--face", "largest", "--loop", "remap", "--strip-metadata", "--audio-track", "0"]
    done = run("sync", still, speech, "-o", tmp_path / "out.mp4", "-q", *options)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.mp4").stat().st_size > 0
