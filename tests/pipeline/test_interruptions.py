"""How a run ends before its time: errors, cancelling, callers that take turns, a closed LipSync."""

from __future__ import annotations

import concurrent.futures
import itertools
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from numpy.typing import NDArray

from helpers.pipeline import FAST, LONG, KnownFace, slow_steps, write_speech
from lipstream import LipSync, RuntimeSettings, SettingsError
from lipstream.errors import Cancelled
from lipstream.models.load import Model
from lipstream.pipeline.file_job import probe_inputs


def test_an_error_in_on_progress_ends_the_run_and_its_threads(
    sync: Callable[..., Any], clip: Path, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exception, and with it every frame of its traceback, is kept: no thread may depend on its end."""
    begun = slow_steps(model, monkeypatch, 0.3)

    def fail(progress: Any) -> None:
        if begun.is_set():
            raise KeyboardInterrupt

    before = threading.enumerate()
    speech, kept = write_speech(tmp_path / "speech.wav", 1.2), None
    try:
        sync(clip, speech, tmp_path / "out.mp4", settings=LONG, on_progress=fail)
    except KeyboardInterrupt as error:
        kept = error
    assert kept is not None
    assert threading.enumerate() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.mp4", "speech.wav"]


def test_an_error_in_a_stage_ends_all_others(
    sync: Callable[..., Any], clip: Path, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any) -> Any:
        raise ValueError("in the U-Net")

    monkeypatch.setattr(model.unet, "step", fail)
    before, kept = threading.enumerate(), None
    try:
        sync(clip, write_speech(tmp_path / "speech.wav", 4), tmp_path / "out.mp4")
    except ValueError as error:
        kept = error
    assert str(kept) == "in the U-Net"
    assert threading.enumerate() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.mp4", "speech.wav"]


def test_cancelling_takes_less_than_two_seconds_with_steps_of_one(
    sync: Callable[..., Any], clip: Path, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, cancel, set_at_s = slow_steps(model, monkeypatch, 1.0), threading.Event(), 0.0
    reports: list[tuple[float, Any]] = []

    def cancel_in_a_step() -> None:
        nonlocal set_at_s
        begun.wait(60)
        time.sleep(1.2)
        set_at_s = time.monotonic()
        cancel.set()

    before = threading.enumerate()
    other = threading.Thread(target=cancel_in_a_step)
    other.start()
    with pytest.raises(Cancelled, match="nothing was written"):
        sync(
            clip,
            write_speech(tmp_path / "speech.wav", 1.2),
            tmp_path / "out.mp4",
            settings=LONG,
            cancel=cancel,
            on_progress=lambda progress: reports.append((time.monotonic(), progress)),
        )
    assert time.monotonic() - set_at_s < 2
    other.join()
    assert threading.enumerate() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.mp4", "speech.wav"]
    # Before the first frame is written, the stages are reported on a clock.
    assert len(reports) >= 3
    assert all(progress.frames == 0 for _, progress in reports)
    assert max(stage.frames for stage in reports[-1][1].stages) > 0
    gaps_s = [later - earlier for (earlier, _), (later, _) in itertools.pairwise(reports)]
    assert max(gaps_s) < 1.5


def test_callers_take_turns_and_a_waiting_one_can_be_cancelled(
    model: Model, recorded: dict[str, NDArray[Any]], clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    speech = write_speech(tmp_path / "speech.wav", 0.4)
    begun = slow_steps(model, monkeypatch, 0.3)
    line = LipSync(model, KnownFace(recorded["landmarks"][0]), RuntimeSettings(device="cpu", threads=1))
    line(clip, speech, tmp_path / "alone.mp4", FAST)
    begun.clear()
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        first = pool.submit(line, clip, speech, tmp_path / "first.mp4", FAST)
        begun.wait(60)
        cancel = threading.Event()
        cancel.set()
        with pytest.raises(Cancelled):
            line(clip, speech, tmp_path / "never.mp4", FAST, cancel=cancel)
        second = pool.submit(line, clip, speech, tmp_path / "second.mp4", FAST)
        assert first.result().frames == second.result().frames == 10
    alone = (tmp_path / "alone.mp4").read_bytes()
    assert (tmp_path / "first.mp4").read_bytes() == (tmp_path / "second.mp4").read_bytes() == alone
    assert not (tmp_path / "never.mp4").exists()


def test_a_closed_lipsync_refuses(model: Model, recorded: dict[str, NDArray[Any]], clip: Path, tmp_path: Path) -> None:
    detector, closed = KnownFace(recorded["landmarks"][0]), []
    detector.close = lambda: closed.append(True)  # type: ignore[method-assign]
    speech = write_speech(tmp_path / "speech.wav", 0.2)
    with LipSync(model, detector, RuntimeSettings(device="cpu", threads=1)) as line:
        inputs = probe_inputs(clip, speech, tmp_path / "out.mp4", overwrite=False)
        assert line(inputs.video, inputs.speech, tmp_path / "out.mp4", FAST).frames == 5
    line.close()
    assert closed == []  # what the caller made is the caller's to close
    with pytest.raises(SettingsError, match="closed"):
        line(clip, speech, tmp_path / "late.mp4", FAST)
