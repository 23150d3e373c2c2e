"""The real command line on real files: exit codes, one-line errors, JSON, whole-or-nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import av
import numpy as np
import pytest

import lipstream
from helpers.cli import command, error_line, run
from helpers.mouth import loudness, mouth_openings
from lipstream.bundled import sample
from lipstream.cli import main
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
        "retries",
    }
    assert result["frames"] == 125
    assert result["duration_s"] == 5.0
    assert result["faces"] == {"frames_with_face": 125, "frames_without": 0, "spans_without": []}
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

    # The mouth follows the speech (0.73 when this was written; the sample as filmed: 0.0), and neither early nor late.
    opening, loud = mouth_openings(output, sample.VIDEO), loudness(sample.SPEECH, 125)
    shifts = range(-5, 6)
    found = [float(np.corrcoef(np.roll(opening, -shift)[5:-5], loud[5:-5])[0, 1]) for shift in shifts]
    assert max(found) > 0.6, found
    assert abs(shifts[int(np.argmax(found))]) <= 1, found


def test_bad_options_are_exit_2_at_once() -> None:
    sync = ("sync", sample.VIDEO, sample.SPEECH)
    begun_s = time.monotonic()
    for arguments, part in (
        (("sync", "a.mp4"), "no recording is named"),
        ((), "no COMMAND given"),
        ((*sync, "--steps", "many"), "argument --steps: invalid int value"),
        ((*sync, "--steps", "0"), "--steps 0: must be from 1 to 100"),
        ((*sync, "--preset", "best"), "--preset 'best': must be one of exact, balanced, fast"),
        ((*sync, "--guidance-interval", "0.5"), "'0.5' is not two numbers"),
        ((*sync, "--guidance-interval", "0.7,0.2"), "must be two rising numbers"),
        ((*sync, "--resolution", "200"), "--resolution 200: must be a multiple of 64"),
        ((*sync, "--batch", "some"), "'some' is neither auto nor a whole number"),
        ((*sync, "--device", "gpu"), "--device 'gpu': must be auto, cpu, cuda, cuda:N or mps"),
        ((*sync, "--overw"), "'--overw' is not an option. Fix: did you mean --overwrite?"),
        (("models", "download", "tiny", "--form", "x"), "did you mean --from?"),
        (("models", "download", "buffalo_s", "--from", "a/b"), "buffalo_s is not on the hub"),
        (("-v", "sync", "a.mp4", "a.wav"), "-v comes before the command"),
        (("in.mp4", "a b.wav"), "did you mean lipstream sync in.mp4 'a b.wav'?"),
        (("doktor",), "did you mean lipstream doctor?"),
        (("nonsense",), "see lipstream --help"),
    ):
        assert part in error_line(run(*arguments), 2)
    assert time.monotonic() - begun_s < 12  # none of them waits for torch


def test_an_error_is_one_json_object_where_json_is_asked_for(tmp_path: Path) -> None:
    done = run("sync", tmp_path / "no.mp4", sample.SPEECH, "--json")
    assert done.returncode == 3
    error = json.loads(done.stdout)["error"]
    assert error == {
        "code": "input",
        "message": "no such file",
        "file": str(tmp_path / "no.mp4"),
        "fix": "check the path",
    }
    done = run("sync", "--json", "--seed", "many")
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["code"] == "settings"


def test_inputs_that_cannot_be_used_are_exit_3(tmp_path: Path) -> None:
    line = error_line(run("sync", tmp_path / "no.mp4", sample.SPEECH), 3)
    assert str(tmp_path / "no.mp4") in line
    assert "no.mp4" in error_line(run("profile", tmp_path / "no.mp4", sample.SPEECH), 3)
    assert "no.mp4" in error_line(run("compare", tmp_path / "no.mp4", sample.VIDEO), 3)
    assert "addresses are not read" in error_line(run("profile", "https://host.example/a.mp4", sample.SPEECH), 3)
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
    line = error_line(run(*words, "latentsync-2"), 5)
    assert "neither a folder nor one of the models" in line
    assert "did you mean latentsync-1" in line.replace("--model ", "")
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


@pytest.mark.parametrize(("sent", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_a_run_in_order(tmp_path: Path, sent: signal.Signals, exit_code: int) -> None:
    process = _started(tmp_path)
    begun_s = time.monotonic()
    process.send_signal(sent)
    stdout, stderr = process.communicate(timeout=120)
    assert time.monotonic() - begun_s < 10  # 2 s, with room for a busy machine
    assert process.returncode == exit_code, stderr
    assert stdout == ""
    assert stderr.splitlines()[-1] == "lipstream: error: interrupted; no unfinished file is left behind"
    assert list(tmp_path.iterdir()) == []


def test_a_second_interrupt_ends_the_process_at_once(tmp_path: Path) -> None:
    process = _started(tmp_path)
    process.send_signal(signal.SIGSTOP)  # both are there before it can do anything
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGCONT)
    process.communicate(timeout=30)
    assert process.returncode in (130, 143)
    assert list(tmp_path.iterdir()) == []


def _started(folder: Path) -> subprocess.Popen[str]:
    """A run in a process of its own, once it has begun to write into the folder."""
    words = ("sync", sample.VIDEO, sample.SPEECH, "-o", folder / "out.mp4", "--detector", "mediapipe")
    process = subprocess.Popen(command(*words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8")
    deadline_s = time.monotonic() + 120
    while not list(folder.iterdir()) and process.poll() is None and time.monotonic() < deadline_s:
        time.sleep(0.05)
    return process


def test_closed_full_and_broken_streams_are_no_internal_errors() -> None:
    quick = " ".join(command("models", "list"))
    usage = " ".join(command("sync", "--help"))
    for words, redirected, exit_code in (
        (quick, "2>&-", 0),
        (quick, ">&- 2>&- <&-", 0),
        (quick, ">/dev/full", 6),
        (quick, "2>/dev/full", 0),
        (quick, "| true", 141),
        (usage, ">/dev/full", 6),
        (usage, "| true", 141),
    ):
        script = f"set -o pipefail; {words} {redirected}"
        done = subprocess.run(["bash", "-c", script], capture_output=True, encoding="utf-8", timeout=120, check=False)
        assert done.returncode == exit_code, (words, redirected, done.stderr)
        assert "internal" not in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_names_are_shown_as_they_are_or_escaped(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    for name, shown in (
        ("nö.mp4", {"ascii": b"n\\xf6.mp4", "utf-8": "nö.mp4".encode()}[encoding]),
        (b"n\xff", b"n\xff"),
    ):
        done = subprocess.run([*command("sync"), name, name], capture_output=True, timeout=120, check=False)
        assert (done.returncode, done.stderr) == (
            3,
            b"lipstream: error: %b: no such file. Fix: check the path\n" % shown,
        )


def test_the_run_says_what_it_does_from_the_beginning(tmp_path: Path) -> None:
    done = run("sync", sample.VIDEO, sample.SPEECH, "-o", tmp_path / "out.mp4", "--progress", "json", "-v")
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    events = [json.loads(line) for line in lines if line.startswith("{")]
    assert [event["event"] for event in events[:3]] == ["notice", "status", "status"]
    assert "demonstration model" in events[0]["message"]
    assert events[2]["message"] == "Loading tiny on cpu ..."
    progress = [event for event in events if event["event"] == "progress"]
    assert progress[0]["frames"] == 0
    assert set(progress[0]["stages"]) == {
        "read",
        "detect",
        "align",
        "features",
        "encode",
        "denoise",
        "composite",
        "write",
    }
    assert progress[-1]["frames"] == progress[-1]["n_frames"] == 125
    assert any("detector mediapipe" in line and "model tiny" in line for line in lines)


def test_quiet_is_quiet(tmp_path: Path) -> None:
    done = run("sync", sample.VIDEO, sample.SPEECH, "-o", tmp_path / "out.mp4", "-q")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_main_runs_off_the_main_thread(capsys: pytest.CaptureFixture[str]) -> None:
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(main(["models", "list"])))
    thread.start()
    thread.join()
    assert codes == [0]
    assert "tiny" in capsys.readouterr().out


def test_completion_knows_commands_options_and_choices() -> None:
    pytest.importorskip("shtab")
    done = run("completion", "bash")
    assert done.returncode == 0, done.stderr
    for part in ("sync", "--preset", "balanced", "buffalo_s", "--guidance-interval"):
        assert part in done.stdout


def test_models_and_doctor_tell_what_there_is() -> None:
    listing = run("models")
    assert listing.returncode == 0
    assert [line.split()[0] for line in listing.stdout.splitlines()] == ["tiny", "latentsync-1.5", "latentsync-1.6"]
    verified = run("models", "verify")
    assert verified.returncode == 0, verified.stderr
    assert [line.split()[0] for line in verified.stdout.splitlines()] == ["ok"] * 3
    doctor = run("doctor", "--json")
    assert doctor.returncode == 0, doctor.stdout
    findings = json.loads(doctor.stdout)
    assert "--device auto takes" in findings["device"]["detail"]
    assert "--detector auto takes mediapipe" in findings["faces"]["detail"]
    assert findings["mediapipe"]["ok"]
    assert not findings["latentsync-1.6"]["ok"]
    assert "lipstream models download latentsync-1.6" in findings["latentsync-1.6"]["detail"]
    assert "non-commercial" in findings["buffalo_s"]["detail"]


def test_doctor_is_exit_1_where_no_run_is_possible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "diffusers.py").write_text("raise ImportError('no such symbol')")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    doctor = run("doctor")
    assert doctor.returncode == 1, doctor.stderr
    assert "--  libraries       diffusers cannot be imported (no such symbol). Fix: pip install" in doctor.stdout
    assert "ok  disk" in doctor.stdout


def test_every_error_has_its_exit_code() -> None:
    codes = {
        lipstream.SettingsError: 2,
        lipstream.InputError: 3,
        lipstream.NoFaceError: 4,
        lipstream.ModelError: 5,
        lipstream.OutputError: 6,
        lipstream.OutOfMemoryError: 8,
        lipstream.Cancelled: 130,
    }
    for error, code in codes.items():
        assert issubclass(error, lipstream.LipstreamError)
        assert error.exit_code == code
    assert lipstream.LipstreamError.exit_code == 1
