"""The measures one by one, on pictures and numbers made for it."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from lipstream.errors import ModelError
from lipstream.evaluate import openings, sync_tracks
from lipstream.evaluate.appearance import EdgeStep, Sharpness
from lipstream.evaluate.measures import MEASURES
from lipstream.evaluate.perceptual import (
    FID_FILE,
    FVD_FILE,
    FVD_FRAMES,
    LPIPS_FILE,
    FaceNetworks,
    FrechetDistance,
    Likeness,
    find_networks,
)
from lipstream.evaluate.region import CROP_PX, face_regions
from lipstream.evaluate.score import ClipFiles, ClipScore, Series
from lipstream.evaluate.summary import Failure, Report, mean_with_interval, table
from lipstream.face.align import face_size

RNG = np.random.default_rng(0)
WHOLE = np.ones((40, 40), np.bool_)


def square(margin: int) -> np.ndarray:
    mask = np.zeros((40, 40), np.bool_)
    mask[margin:-margin, margin:-margin] = True
    return mask


def of(measure: Sharpness | EdgeStep, image: np.ndarray, mask: np.ndarray) -> float | None:
    measure.add(image, mask)
    return measure.value()


def test_sharpness_is_the_laplacians_energy() -> None:
    image = np.zeros((40, 40, 3), np.uint8)
    image[20, 20] = 100
    assert of(Sharpness(), image, WHOLE) == pytest.approx((400**2 + 4 * 100**2) / 38**2, rel=1e-5)
    assert of(Sharpness(), image, square(5)) == pytest.approx((400**2 + 4 * 100**2) / 30**2, rel=1e-5)
    slope = np.repeat(np.arange(40, dtype=np.uint8)[:, None, None] * 5, 40, 1).repeat(3, 2)
    assert of(Sharpness(), slope, WHOLE) == pytest.approx(0, abs=1e-4)
    assert of(Sharpness(), image, np.zeros((40, 40), np.bool_)) is None


def test_edge_step_sees_the_seam_and_nothing_else() -> None:
    mask = square(10)
    image = np.where(mask[..., None], 130, 100).astype(np.uint8).repeat(3, 2)
    image[:8] = 255  # far from the seam
    assert of(EdgeStep(), image, mask) == pytest.approx(30)
    assert of(EdgeStep(), np.full((40, 40, 3), 7, np.uint8), mask) == 0
    assert of(EdgeStep(), image, WHOLE) is None


def test_regions_are_those_of_the_published_mask() -> None:
    width, height = face_size(CROP_PX)
    matrix = np.array([[1, 0, -30], [0, 1, -20]], np.float32)  # the face rectangle begins at 30, 20
    repainted, face = face_regions(matrix, height + 60, width + 50)
    rows, columns = np.flatnonzero(face.any(1)), np.flatnonzero(face.any(0))
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (20, 19 + height, 30, 29 + width)
    assert face.sum() == width * height
    assert not (repainted & ~face).any()
    assert 0.2 < repainted.sum() / face.sum() < 0.6
    assert np.flatnonzero(repainted.any(1))[0] > 20 + height // 4  # the eyes are kept


def test_regions_outside_the_frame_are_empty() -> None:
    for shift in (-5000, 5000):
        repainted, face = face_regions(np.array([[1, 0, shift], [0, 1, shift]], np.float32), 50, 60)
        assert face.shape == (50, 60)
        assert not face.any()
        assert not repainted.any()


def speech(pattern: str) -> np.ndarray:
    """A quarter of a second of noise for each x, of silence for each dot; 16 kHz."""
    parts = [RNG.normal(0, 0.1, 4000) if letter == "x" else np.zeros(4000) for letter in pattern]
    return np.concatenate(parts).astype(np.float32)


def test_silence_is_a_pause_without_its_ends() -> None:
    levels = openings.levels_db(speech("xxxx..xxxx....xxxx"), 1000)
    silent = openings.silent_frames(levels)
    # 0.5 s of silence are 12 frames at 1.0 s, 1 s are 25 at 2.5 s.
    assert np.flatnonzero(silent).tolist() == [*range(28, 34), *range(66, 84)]
    assert openings.silent_frames(openings.levels_db(speech("...."), 25)).all()
    assert not openings.silent_frames(openings.levels_db(speech("xxxx"), 25)).any()


def test_in_silence_counts_open_mouths_and_leaves_missing_ones_out() -> None:
    silent = np.array([True] * 4 + [False] * 2)
    found = openings.in_silence(np.array([0.001, 0.05, np.nan, 0.003, 0.2, 0.2]), silent)
    assert found.frames == 3
    assert found.open_share == pytest.approx(1 / 3)
    assert found.opening == pytest.approx(0.018)
    assert openings.in_silence(np.full(6, np.nan), silent).open_share is None


def test_leakage_tells_the_old_mouth_from_the_new_speech() -> None:
    levels, old = RNG.normal(size=(2, 500))
    new = levels + 0.3 * RNG.normal(size=500)
    assert abs(openings.leakage(new, old, levels) or 0) < 0.1
    assert (openings.leakage(new + old, old, levels) or 0) > 0.9
    # Both follow the same speech: what they share is not leakage.
    same = levels + 0.3 * RNG.normal(size=500)
    assert (openings.correlation(new, same) or 0) > 0.8
    assert abs(openings.leakage(new, same, levels) or 0) < 0.15
    assert openings.leakage(np.ones(500), old, levels) is None


def box(x: float, side: float = 120) -> sync_tracks.Box:
    return x, 50.0, x + side, 50.0 + side


def test_tracks_bridge_gaps_and_end_at_jumps() -> None:
    boxes: list[sync_tracks.Box | None] = [box(100)] * 60 + [None] * 20 + [box(104)] * 10 + [box(400)] * 55
    first, second = sync_tracks.tracks([*boxes, *[None] * 30, *[box(400)] * 49])
    assert (first.first, len(first.squares), second.first, len(second.squares)) == (0, 90, 90, 55)
    assert first.squares[30] == pytest.approx([160, 110, 60])
    # Zeros beyond the ends take part in the median, as published: it is the least of what there is, here the same.
    assert first.squares[0] == pytest.approx([160, 110, 60])
    assert sync_tracks.tracks([box(100)] * 49) == []
    assert sync_tracks.tracks([box(100, side=90)] * 60) == []


def test_a_crop_is_bgr_grey_outside_and_the_published_square() -> None:
    image = np.zeros((200, 300, 3), np.uint8)
    image[..., 0] = np.arange(200)[:, None]  # red rises downwards
    image[..., 2] = 7
    found = sync_tracks.crop(image, 150, 100, 50)  # rows 50 to 190, columns 80 to 220
    assert found.shape == (224, 224, 3)
    assert (found[..., 0] == 7).all()
    assert found[[0, -1], 0, 2].tolist() == [50, 189]
    corner = sync_tracks.crop(image, 10, 10, 50)
    assert (corner[0, 0] == 110).all()
    assert corner[-1, -1, 0] == 7


def test_an_interval_narrows_with_more_clips_and_holds_the_mean() -> None:
    few, many = (mean_with_interval(RNG.normal(5, 1, n).tolist()) for n in (5, 500))
    assert few.low is not None and few.high is not None and many.low is not None and many.high is not None
    assert few.low < few.mean < few.high
    assert many.high - many.low < (few.high - few.low) / 3
    assert many.high - many.low == pytest.approx(2 * 1.96 / np.sqrt(500), rel=0.15)
    assert mean_with_interval([3.0]).low is None
    assert mean_with_interval([3.0, 4.0]) == mean_with_interval([3.0, 4.0])


def clip_score(name: str, **measures: float | None) -> ClipScore:
    files = ClipFiles(Path(name))
    return ClipScore(files, {"frames": 10, **measures}, {"leakage": "no --source"}, Series({}, np.zeros(0), ()))


def test_a_report_has_a_row_per_clip_and_counts_failures() -> None:
    scores = clip_score("a.mp4", ssim=0.5, psnr_db=float("inf")), clip_score("b.mp4", ssim=0.7, sync_c=None)
    report = Report(scores, (Failure("c.mp4", "broken"),), {"fid": None, "fvd": 3.25}, {"leakage": "no --source"})
    values = json.loads(report.to_json())
    assert (values["scored"], values["failed"]) == (2, 1)
    assert values["clips"][0]["psnr_db"] is None  # JSON has no infinity
    assert values["means"]["ssim"]["mean"] == pytest.approx(0.6)
    assert "sync_c" not in values["means"]
    rows = list(csv.DictReader(io.StringIO(report.to_csv().decode())))
    assert [row["clip"] for row in rows] == ["a.mp4", "b.mp4", "c.mp4"]
    assert [row["error"] for row in rows] == ["", "", "broken"]
    assert [row["ssim"] for row in rows] == ["0.5", "0.7", ""]
    assert set(MEASURES) < set(rows[0])
    text = table(report)
    assert "2 of 3 clips scored" in text
    assert "failed: c.mp4: broken" in text
    assert "not measured: leakage: no --source" in text
    assert "fvd" in text and "3.25" in text and "fid" not in text
    assert (report.to_dict()["fid"], report.to_dict()["fvd"]) == (None, 3.25)


def test_the_frechet_distance_of_gaussians_is_the_formula() -> None:
    distance = FrechetDistance()
    one = RNG.normal(0, [1, 2, 3], (4000, 3))
    for part in np.split(one, 8):
        distance.add(part, part * 2 + 1)
    # Shift by the mean plus one, scale by two: |m|^2 + trace(C) of the exact moments.
    expected = np.square(one.mean(0) + 1).sum() + np.trace(np.cov(one.T))
    assert distance.value() == pytest.approx(expected, rel=1e-6)
    assert FrechetDistance().value() is None


class Stand(torch.nn.Module):
    """A stand-in for the networks of LPIPS, FID and FVD: the mean colour."""

    def forward(
        self,
        x: torch.Tensor,
        resize_images: bool = False,
        return_lpips: bool = False,
        return_features: bool = False,
        rescale: bool = False,
        resize: bool = False,
    ) -> torch.Tensor:
        return x.float().flatten(2).mean(2)


def likeness(networks: FaceNetworks) -> Likeness:
    return Likeness(networks, FrechetDistance(), FrechetDistance())


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_networks_are_taken_from_the_folder_that_is_named(tmp_path: Path) -> None:
    nothing, absent = find_networks(tmp_path)
    assert set(absent) >= {"lpips", "fid", "fvd"}
    assert LPIPS_FILE in absent["lpips"]
    for name in (LPIPS_FILE, FID_FILE, FVD_FILE):
        torch.jit.script(Stand()).save(str(tmp_path / name))  # type: ignore[no-untyped-call]
    networks, absent = find_networks(tmp_path)
    assert not {"lpips", "fid", "fvd"} & set(absent)
    image, matrix = np.full((300, 300, 3), 100, np.uint8), np.eye(2, 3, dtype=np.float32)
    found = []
    for given, other in ((nothing, image + 10), (networks, image + 10), (networks, image)):
        one = likeness(given)
        one.add(image, other, matrix)
        found.append(one.means().get("lpips"))
    assert found == [None, pytest.approx(300), 0]
    (tmp_path / LPIPS_FILE).write_bytes(b"not a network")
    with pytest.raises(ModelError, match="TorchScript"):
        find_networks(tmp_path)


def test_fid_compares_frames_and_fvd_whole_windows_of_them() -> None:
    shapes = []

    def features(crops: torch.Tensor) -> np.ndarray:
        shapes.append(tuple(crops.shape))
        return crops.double().flatten(2).mean(2).numpy()

    fid, fvd = FrechetDistance(), FrechetDistance()
    compared = Likeness(FaceNetworks(features=features, window_features=features), fid, fvd)
    image, matrix = np.full((300, 300, 3), 100, np.uint8), np.eye(2, 3, dtype=np.float32)
    for index in range(3 * FVD_FRAMES):
        if index == FVD_FRAMES + 5:
            compared.interrupt()  # no window goes over a frame without a face
        compared.add(image, image + index % 7, matrix)
    assert (fid.count, fvd.count) == (3 * FVD_FRAMES, 2)
    assert set(shapes) == {(1, 3, 256, 256), (1, 3, FVD_FRAMES, 256, 256)}
    assert fvd.value() is not None


def test_identity_is_the_cosine_of_the_embeddings() -> None:
    seen = []

    def embed(crop: torch.Tensor) -> np.ndarray:
        seen.append(tuple(crop.shape))
        return np.array([1.0, float(crop.mean() > 0)], np.float32)

    dark, light = np.zeros((300, 300, 3), np.uint8), np.full((300, 300, 3), 255, np.uint8)
    matrix, networks = np.eye(2, 3, dtype=np.float32), FaceNetworks(embed=embed)
    found = []
    for other in (dark, light):
        one = likeness(networks)
        one.add(dark, other, matrix)
        found.append(one.means()["identity"])
    assert found == pytest.approx([1, 1 / np.sqrt(2)])
    assert set(seen) == {(3, 112, 112)}
