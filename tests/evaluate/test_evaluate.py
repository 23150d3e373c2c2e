"""`lipstream evaluate` on real files: one clip, a folder with a broken one, and what it refuses."""

from __future__ import annotations

import csv
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.cli import error_line, run
from helpers.media import write_wav
from helpers.syncnet import syncnet_tensors
from lipstream.bundled import sample
from lipstream.cli.evaluate import SOME_FAILED
from lipstream.encoding_settings import EncodingSettings
from lipstream.evaluate.lip_metrics import MouthFinder
from lipstream.evaluate.score import ClipFiles, Tools, score_clip
from lipstream.evaluate.syncnet import load_syncnet
from lipstream.face.registry import make_detector
from lipstream.media.audio import probe_speech
from lipstream.media.reader import read_frames
from lipstream.media.writer import VideoWriter

N_FRAMES = 12
FIGURES = ("psnr_db", "ssim", "face_psnr_db", "face_ssim", "sharpness", "flicker", "edge_step", "landmark_distance")


def write(path: Path, images: list[np.ndarray], speech: Path | None = None, crf: int = 4) -> Path:
    height, width = images[0].shape[:2]
    sound = probe_speech(speech) if speech else None
    n = len(images)
    size = {"width": width, "height": height, "n_frames": n}
    with VideoWriter(path, **size, color=None, speech=sound, encoding=EncodingSettings(crf=crf)) as writer:
        for image in images:
            writer.write(image)
    return path


def softened(image: np.ndarray) -> np.ndarray:
    """The frame blurred."""
    wide = image.astype(int)
    return ((wide + np.roll(wide, 2, 0) + np.roll(wide, 2, 1) + np.roll(wide, -2, 1)) // 4).astype(np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """made: two videos and one without a picture; true: what they should be; said: the speech, half of it silent."""
    root = tmp_path_factory.mktemp("clips")
    for name in ("made", "true", "said"):
        (root / name).mkdir()
    frames = [frame.image for frame in itertools.islice(read_frames(sample.VIDEO), N_FRAMES)]
    write(root / "made" / "a.mp4", [softened(frame) for frame in frames], sample.SPEECH)
    write(root / "made" / "b.mp4", frames, crf=18)
    (root / "made" / "c.mp4").write_bytes(b"no picture")
    (root / "made" / "notes.txt").write_text("not a clip")
    for name in ("a", "b"):
        write(root / "true" / f"{name}.mp4", frames)
    noise = np.random.default_rng(0).integers(-9000, 9000, 640 * N_FRAMES)
    write_wav(root / "said" / "a.wav", np.where(np.arange(len(noise)) < 640 * 10, 0, noise).astype(np.int16), 16000)
    return root


@pytest.fixture(scope="module")
def report(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    output = tmp_path_factory.mktemp("report") / "all.json"
    named = ("--reference", folder / "true", "--source", folder / "true", "--speech", folder / "said")
    done = run("evaluate", "--folder", folder / "made", *named, "-o", output, "--json")
    assert done.returncode == SOME_FAILED, done.stderr
    values: dict[str, Any] = json.loads(done.stdout)
    assert json.loads(output.read_text()) == values
    return output, values


def test_a_folder_has_a_row_per_clip_and_failures_are_counted(report: tuple[Path, dict[str, Any]]) -> None:
    output, values = report
    assert [Path(row["clip"]).name for row in values["clips"]] == ["a.mp4", "b.mp4"]
    assert (values["scored"], values["failed"]) == (2, 1)
    assert "c.mp4" in values["failures"][0]["clip"]
    rows = list(csv.DictReader(output.with_suffix(".csv").read_text().splitlines()))
    assert [Path(row["clip"]).name for row in rows] == ["a.mp4", "b.mp4", "c.mp4"]
    assert rows[2]["error"]
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_the_measures_tell_a_blurred_clip_from_an_untouched_one(report: tuple[Path, dict[str, Any]]) -> None:
    blurred, same = report[1]["clips"]
    assert all(blurred[name] is not None for name in FIGURES)
    assert blurred["frames"] == same["frames"] == N_FRAMES
    assert blurred["frames_without_face"] == 0
    assert blurred["ssim"] < 0.97 < same["ssim"]
    assert blurred["psnr_db"] < same["psnr_db"] - 6
    assert blurred["sharpness"] < 0.6 * blurred["reference_sharpness"]
    assert same["sharpness"] == pytest.approx(same["reference_sharpness"], rel=0.1)
    assert same["landmark_distance"] < 0.01
    assert same["landmark_distance"] < blurred["landmark_distance"]
    means = report[1]["means"]["ssim"]
    assert means["mean"] == pytest.approx((blurred["ssim"] + same["ssim"]) / 2, abs=1e-5)
    assert means["low"] <= means["mean"] <= means["high"]


def test_silence_and_leakage_are_measured_where_there_is_speech(report: tuple[Path, dict[str, Any]]) -> None:
    spoken, without = report[1]["clips"]
    assert spoken["silent_frames"] == 7  # ten silent frames, less three before the noise
    assert spoken["open_in_silence"] == spoken["reference_open_in_silence"] == 1  # the sample smiles
    assert spoken["leakage"] is not None
    assert without["open_in_silence"] is None
    assert "no speech" in without["absent"]["open_in_silence"]


def test_what_is_not_at_hand_is_said_and_not_guessed(report: tuple[Path, dict[str, Any]]) -> None:
    absent = report[1]["absent"]
    assert "lipstream models download syncnet" in absent["sync_c"]
    assert {"lpips", "fid", "identity"} <= set(absent)
    assert all(row["sync_c"] is None for row in report[1]["clips"])


def test_syncnet_scores_a_clip_where_its_file_is_here(tmp_path: Path) -> None:
    torch.save(syncnet_tensors(), tmp_path / "syncnet_v2.model")
    network = load_syncnet(tmp_path / "syncnet_v2.model")
    shown = []

    def lips(windows: torch.Tensor) -> torch.Tensor:
        shown.append(windows)
        return windows.mean((2, 3, 4)).repeat(1, 342)[:, :1024]

    network.lips = lips  # type: ignore[method-assign]  # the arithmetic is test_syncnet's; here it would take half a minute
    frames = [frame.image for frame in itertools.islice(read_frames(sample.VIDEO), 54)]
    video = write(tmp_path / "a.mp4", frames)
    detector = make_detector("mediapipe", "cpu")
    finder = MouthFinder(detector)
    score = score_clip(ClipFiles(video, speech=sample.SPEECH), Tools(finder, network))
    short = score_clip(ClipFiles(write(tmp_path / "b.mp4", frames[:20]), speech=sample.SPEECH), Tools(finder, network))
    finder.close()
    detector.close()
    assert sum(len(windows) for windows in shown) == 50
    assert tuple(shown[0].shape[1:]) == (3, 5, 224, 224)
    assert score.measures["sync_d"] == min(score.series.mean_distances)
    assert len(score.series.mean_distances) == 31
    assert short.measures.get("sync_c") is None
    assert "50 frames" in short.absent["sync_c"]


def test_a_single_clip_prints_its_values_and_refuses_to_replace(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "one.json"
    done = run("evaluate", folder / "made" / "a.mp4", "-o", output)
    assert done.returncode == 0, done.stderr
    assert "1 of 1 clips scored" in done.stdout
    assert "no --reference" in done.stdout
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".csv", ".json", ".png"]
    assert "already exists" in error_line(run("evaluate", folder / "made" / "a.mp4", "-o", output), 6)


def test_what_cannot_be_scored_is_refused(folder: Path, tmp_path: Path) -> None:
    clip = folder / "made" / "b.mp4"
    assert "VIDEO or --folder" in error_line(run("evaluate"), 2)
    assert "no such file" in error_line(run("evaluate", clip, "--reference", tmp_path / "none.mp4"), 3)
    assert "not a folder" in error_line(run("evaluate", "--folder", folder / "made", "--reference", clip), 3)
    assert "no video in it" in error_line(run("evaluate", "--folder", folder / "said"), 3)
    small = write(tmp_path / "small.mp4", [np.zeros((64, 64, 3), np.uint8)] * 3)
    arguments = ("evaluate", clip, "--reference", small, "-o", tmp_path / "x.json")
    assert "size 64x64 differs" in error_line(run(*arguments), 3)
    assert "no usable face" in error_line(run("evaluate", small, "-o", tmp_path / "x.json"), 4)
    copy = shutil.copy(clip, tmp_path / "copy.json")
    assert "also an input" in error_line(run("evaluate", copy, "-o", copy, "--overwrite"), 6)
    wrong = tmp_path / "wrong.model"
    torch.save({"x": torch.zeros(2)}, wrong)
    assert "SyncNet" in error_line(run("evaluate", clip, "--syncnet", wrong, "-o", tmp_path / "x.json"), 5)
