"""`lipstream compare` on real files: a film that is whole, labels, figures, a sheet; and what it refuses."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from helpers.cli import error_line, run
from helpers.media import write_images
from lipstream.bundled import sample
from lipstream.evaluate.compare import LABELS, compare, compare_videos
from lipstream.media.audio import probe_speech
from lipstream.media.reader import probe, read_frames
from lipstream.media.writer import VideoWriter

N_FRAMES = 6


def repainted(image: NDArray[np.uint8], strength: int) -> NDArray[np.uint8]:
    """The frame with a patch below its middle made lighter, more so in the upper part."""
    image = image.copy()
    height, width = image.shape[:2]
    patch = image[height // 3 : height // 2, width // 3 : width // 2]
    patch[:] = (patch.astype(int) + np.linspace(strength, 0, len(patch))[:, None, None]).clip(0, 255).astype(np.uint8)
    return image


def write(path: Path, images: list[NDArray[np.uint8]], speech: Path | None = None) -> Path:
    height, width = images[0].shape[:2]
    sound = probe_speech(speech) if speech else None
    with VideoWriter(path, width=width, height=height, color=None, speech=sound, n_frames=len(images)) as writer:
        for image in images:
            writer.write(image)
    return path


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A little of the sample, the same with a patch repainted, with sound, and with another patch, a frame longer."""
    folder = tmp_path_factory.mktemp("videos")
    frames = [frame.image for frame in itertools.islice(read_frames(sample.VIDEO), N_FRAMES + 1)]
    return [
        write(folder / "a.mp4", frames[:N_FRAMES]),
        write(folder / "b.mp4", [repainted(frame, 60) for frame in frames[:N_FRAMES]], sample.SPEECH),
        write(folder / "c.mp4", [repainted(frame, 90) for frame in frames]),
    ]


@pytest.fixture(scope="module")
def compared(videos: list[Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    output = tmp_path_factory.mktemp("compared") / "all.mp4"
    done = run("compare", *videos, "-o", output, "--json")
    assert done.returncode == 0, done.stderr
    assert all(line.startswith("lipstream: ") for line in done.stderr.splitlines())
    words: dict[str, Any] = json.loads(done.stdout)
    return output, words


def test_the_film_holds_all_three_and_the_speech(compared: tuple[Path, dict[str, Any]], videos: list[Path]) -> None:
    output, _ = compared
    info = probe(videos[0])
    with av.open(str(output)) as container:
        assert "Made with AI" in container.metadata["comment"]
        assert [stream.type for stream in container.streams] == ["video", "audio"]
    images = [frame.image for frame in read_frames(output)]
    assert len(images) == N_FRAMES
    height, width = images[0].shape[:2]
    assert width == 3 * info.width
    band = height - info.height
    assert 24 <= band <= info.height // 4
    for label in np.split(images[0][:band], 3, axis=1):  # light letters on a dark band
        assert label.mean() < 80
        assert label.max() > 200
    originals = [next(iter(read_frames(path))).image.astype(int) for path in videos]
    for shown, image in zip(np.split(images[0][band:], 3, axis=1), originals, strict=True):
        assert np.abs(shown - image).mean() < 3


def test_the_figures_are_of_the_last_beside_the_one_before(
    compared: tuple[Path, dict[str, Any]], videos: list[Path]
) -> None:
    output, words = compared
    assert words == json.loads(output.with_suffix(".json").read_text())
    assert (words["measured"], words["against"], words["untouched"]) == (LABELS[2], LABELS[1], LABELS[0])
    assert [side["frames"] for side in words["videos"]] == [N_FRAMES, N_FRAMES, N_FRAMES + 1]
    assert words["frames"] == N_FRAMES
    assert words["sound"] == str(videos[1])
    quality = words["quality"]
    assert set(quality) == {
        "frames",
        "frames_without_face",
        "psnr_db",
        "ssim",
        "landmark_distance",
        "opening_correlation",
        "flicker",
        "reference_flicker",
        "sharpness",
        "reference_sharpness",
        "edge_step",
        "reference_edge_step",
    }
    assert quality["frames"] == N_FRAMES
    assert quality["frames_without_face"] == 0
    # The patches differ by 0 to 30 levels; the rest of the frame, which is alike, does not count.
    assert 20 < quality["psnr_db"] < 32
    assert 0.5 < quality["ssim"] < 1
    assert 0 <= quality["landmark_distance"] < 0.05


def test_the_sheet_has_a_row_a_video(compared: tuple[Path, dict[str, Any]]) -> None:
    output, words = compared
    assert words["sheet"] == str(output.with_suffix(".png"))
    with av.open(words["sheet"]) as container:
        picture = next(container.decode(video=0)).to_ndarray(format="rgb24")
    assert picture.shape[1] == N_FRAMES * 192
    assert picture.shape[0] > 3 * 256
    assert sorted(path.name for path in output.parent.iterdir()) == ["all.json", "all.mp4", "all.png"]


def test_labels_of_ones_own_and_nothing_is_replaced(videos: list[Path], tmp_path: Path) -> None:
    output = tmp_path / "two.mp4"
    done = run("compare", *videos[:2], "-o", output, "--labels", "vorher, nachher ä")
    assert done.returncode == 0, done.stderr
    assert "nachher ä against vorher" in done.stdout
    words = json.loads(output.with_suffix(".json").read_text())
    assert [side["label"] for side in words["videos"]] == ["vorher", "nachher ä"]
    assert 10 < words["quality"]["psnr_db"] < 25
    assert "already exists" in error_line(run("compare", *videos[:2], "-o", output), 6)
    output.unlink()
    assert "two.json" in error_line(run("compare", *videos[:2], "-o", output), 6)
    assert not output.exists()
    assert run("compare", *videos[:2], "-o", output, "--overwrite").returncode == 0


def test_one_frame_without_a_face_or_sound_is_compared_all_the_same(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (120, 161, 3), dtype=np.uint8)
    one = write_images(tmp_path / "one.mkv", [noise])
    other = write(tmp_path / "other.mp4", [noise[::-1].copy()])  # H.264 made its width even
    done = compare([one, other], tmp_path / "out.mp4")
    assert (done.frames, done.sound) == (1, None)
    quality = done.quality
    assert (quality.frames, quality.frames_without_face) == (1, 1)
    assert quality.landmark_distance is quality.opening_correlation is quality.flicker is None
    assert quality.psnr_db is not None
    assert quality.psnr_db < 12
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert [stream.type for stream in container.streams] == ["video"]
        assert sum(1 for _ in container.decode(video=0)) == 1
    assert (tmp_path / "out.png").stat().st_size > 0


def test_equal_videos_are_equal(videos: list[Path], tmp_path: Path) -> None:
    quality = compare_videos(videos[1], videos[1], videos[0])
    assert (quality.psnr_db, quality.ssim) == (float("inf"), 1)
    assert quality.flicker == quality.reference_flicker
    nothing_generated = compare_videos(videos[1], videos[1])
    assert nothing_generated.psnr_db is nothing_generated.ssim is None
    done = compare([videos[0], videos[1], videos[1]], tmp_path / "same.mp4")
    assert done.quality.landmark_distance == 0
    assert json.loads((tmp_path / "same.json").read_text())["quality"]["psnr_db"] is None


def test_what_cannot_be_compared(videos: list[Path], tmp_path: Path) -> None:
    output = ("-o", tmp_path / "out.mp4")
    assert "no.mp4" in error_line(run("compare", videos[0], tmp_path / "no.mp4", *output), 3)
    small = write_images(tmp_path / "small.mkv", [np.zeros((64, 64, 3), np.uint8)])
    line = error_line(run("compare", videos[0], small, *output), 3)
    assert "small.mkv: size 64x64" in line
    assert "got 1 labels for 2 videos" in error_line(run("compare", *videos[:2], *output, "--labels", "one"), 2)
    assert "also an input" in error_line(run("compare", *videos[:2], "-o", videos[1], "--overwrite"), 6)
    (tmp_path / "text.mp4").write_text("no video")
    assert "text.mp4" in error_line(run("compare", videos[0], tmp_path / "text.mp4", *output), 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small.mkv", "text.mp4"]
