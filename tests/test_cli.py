"""The real command line on real files: exit codes, one-line errors, JSON, whole-or-nothing."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import av
import numpy as np
import pytest

import lipstream
from cli_helpers import command, error_line, run
from lipstream import sample
from lipstream.media.writer import VideoWriter


def test_the_demo_makes_a_talking_face_and_one_json_object(tmp_path: Path) -> None:
    done = run("demo", "-o", tmp_path / "demo", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert set(result) == {
        "output",
        "frames",
        "duration_s",
        "wall_s",
        "real_time_factor",
        "stages",
        "faces",
        "settings",
    }
    assert result["frames"] == 125
    assert result["duration_s"] == 5.0
    assert result["faces"] == {"frames_with_face": 125, "frames_without": 0}
    assert [set(stage) for stage in result["stages"]] == [{"name", "seconds", "frames"}] * 8
    assert result["settings"]["model"] == "tiny"
    assert result["settings"]["detector"] == "mediapipe"

    output = tmp_path / "demo" / "lipstream-demo.mp4"
    assert result["output"] == str(output)
    with av.open(str(output)) as container, av.open(str(sample.VIDEO)) as original:
        assert "Made with AI" in container.metadata["comment"]
        pairs = zip(container.decode(video=0), original.decode(video=0), strict=True)
        pairs = [tuple(frame.to_ndarray(format="rgb24").astype(int) for frame in pair) for pair in pairs]
    assert len(pairs) == 125
    changed = np.mean([np.abs(after - before).mean(-1) for after, before in pairs], axis=0)
    rows = np.nonzero((changed > 8).any(axis=1))[0]
    assert len(rows) > 10  # the mouth's region changed
    assert changed[:20].mean() < 4  # the rest is as it was


def test_wrong_words_are_exit_2_at_once(tmp_path: Path) -> None:
    begun_s = time.monotonic()
    assert "AUDIO" in error_line(run("sync", "a.mp4"), 2)
    assert "invalid int value" in error_line(run("sync", "a.mp4", "b.wav", "--steps", "many"), 2)
    assert "COMMAND" in error_line(run(), 2)
    assert time.monotonic() - begun_s < 10
    assert "preset = 'best'" in error_line(run("sync", "a.mp4", "b.wav", "--preset", "best"), 2)
    for option, told, said in (
        ("--guidance-interval", "0.5", "'0.5' is not two numbers"),
        ("--resolution", "200", "resolution = 200: must be a multiple of 64"),
    ):
        assert said in error_line(run("sync", "a.mp4", "b.wav", option, told), 2)
    assert "num_inference_steps = 0" in error_line(run("sync", "a.mp4", "b.wav", "--steps", "0"), 2)
    assert "'gpu'" in error_line(run("sync", sample.VIDEO, sample.SPEECH, "--device", "gpu", cwd=tmp_path), 2)


def test_inputs_that_cannot_be_used_are_exit_3(tmp_path: Path) -> None:
    line = error_line(run("sync", tmp_path / "no.mp4", sample.SPEECH), 3)
    assert str(tmp_path / "no.mp4") in line
    (tmp_path / "text.mp4").write_text("this is no video")
    assert "text.mp4" in error_line(run("sync", tmp_path / "text.mp4", sample.SPEECH), 3)
    assert "speech.wav" in error_line(run("sync", sample.SPEECH, sample.SPEECH), 3)
    assert "astronaut.mp4" in error_line(run("sync", sample.VIDEO, sample.VIDEO), 3)


def test_file_names_are_only_names(tmp_path: Path) -> None:
    name = tmp_path / "$(touch pwned); 'two words' -o.mp4"
    name.symlink_to(sample.VIDEO)
    speech = tmp_path / "-speech `id`.wav"
    speech.symlink_to(sample.SPEECH)
    line = error_line(run("sync", name, speech, "-o", name, cwd=tmp_path), 6)
    assert "also an input" in line
    assert not (tmp_path / "pwned").exists()


def test_a_video_without_a_face_is_exit_4_and_leaves_nothing(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (240, 320, 3), dtype=np.uint8)
    with VideoWriter(tmp_path / "noise.mp4", width=320, height=240, color=None, speech=None, n_frames=10) as writer:
        for _ in range(10):
            writer.write(noise)
    words = ("sync", tmp_path / "noise.mp4", sample.SPEECH, "-o", tmp_path / "out.mp4", "--detector", "mediapipe")
    assert "no usable face in the 10 frames searched" in error_line(run(*words), 4)
    assert [path.name for path in tmp_path.iterdir()] == ["noise.mp4"]


def test_models_that_cannot_be_used_are_exit_5(tmp_path: Path) -> None:
    words = ("sync", sample.VIDEO, sample.SPEECH, "-o", tmp_path / "out.mp4", "--detector", "mediapipe", "--model")
    assert "neither a folder nor one of the models" in error_line(run(*words, "latentsync-2"), 5)
    (tmp_path / "model").mkdir()
    assert "lipstream.json" in error_line(run(*words, tmp_path / "model"), 5)
    assert "no-such" in error_line(run("models", "verify", "no-such"), 5)


def test_outputs_that_cannot_be_written_are_exit_6(tmp_path: Path) -> None:
    words = ("sync", sample.VIDEO, sample.SPEECH, "-o")
    (tmp_path / "there.mp4").write_bytes(b"mine")
    assert "--overwrite" in error_line(run(*words, tmp_path / "there.mp4"), 6)
    assert (tmp_path / "there.mp4").read_bytes() == b"mine"
    assert ".mkv" in error_line(run(*words, tmp_path / "out.avi"), 6)
    assert "folder" in error_line(run(*words, tmp_path / "no" / "out.mp4"), 6)


def test_an_interrupt_is_exit_130_and_leaves_nothing(tmp_path: Path) -> None:
    words = ("sync", sample.VIDEO, sample.SPEECH, "-o", tmp_path / "out.mp4", "--detector", "mediapipe")
    process = subprocess.Popen(command(*words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline_s = time.monotonic() + 120
    while not list(tmp_path.iterdir()) and process.poll() is None and time.monotonic() < deadline_s:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 130, stderr
    assert stdout == ""
    assert "interrupted" in stderr
    assert list(tmp_path.iterdir()) == []


def test_models_and_doctor_tell_what_there_is() -> None:
    listing = run("models")
    assert listing.returncode == 0
    assert [line.split()[0] for line in listing.stdout.splitlines()] == ["tiny", "latentsync-1.5", "latentsync-1.6"]
    verified = run("models", "verify")
    assert verified.returncode == 0, verified.stderr
    assert [line.split()[0] for line in verified.stdout.splitlines()] == ["ok"] * 3
    findings = json.loads(run("doctor", "--json").stdout)
    assert findings["mediapipe"]["ok"]
    assert not findings["latentsync-1.6"]["ok"]
    assert "lipstream models download latentsync-1.6" in findings["latentsync-1.6"]["detail"]


def test_the_exported_names() -> None:
    assert sorted(lipstream.__all__) == [
        "InputError",
        "LipSync",
        "LipstreamError",
        "ModelError",
        "NoFaceError",
        "OutputError",
        "Progress",
        "RuntimeSettings",
        "SettingsError",
        "StageTime",
        "SyncResult",
        "SyncSettings",
        "__version__",
    ]
    for name in lipstream.__all__:
        assert getattr(lipstream, name) is not None
    with pytest.raises(AttributeError, match="LipSink"):
        _ = lipstream.LipSink


def test_every_error_has_its_exit_code() -> None:
    codes = {
        lipstream.SettingsError: 2,
        lipstream.InputError: 3,
        lipstream.NoFaceError: 4,
        lipstream.ModelError: 5,
        lipstream.OutputError: 6,
    }
    for error, code in codes.items():
        assert issubclass(error, lipstream.LipstreamError)
        assert error.exit_code == code
    assert lipstream.LipstreamError.exit_code == 1
