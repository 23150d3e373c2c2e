"""mediapipe's networks: faces anywhere and turned, and lips, the same on every run and in any thread."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lipstream.errors import ModelError
from lipstream.evaluate.mouth import INNER_LIPS, FaceMesh, mouth_opening, mouth_width
from lipstream.face.align import crop_face, face_size
from lipstream.face.mediapipe.detector import MediapipeDetector
from lipstream.face.mediapipe.lips import AttentionMesh
from lipstream.face.mediapipe.networks import MESH, SIDE, Network
from lipstream.face.quiet import hide_native_logs
from lipstream.face.registry import Detector, DetectorStatus, detector_report, make_detector
from lipstream.face.tracking import FaceTrack
from lipstream.imaging import affine_grid, bilinear_sample, invert_affine, lanczos4_resize


@pytest.fixture(scope="module")
def detector() -> Iterator[MediapipeDetector]:
    detector = MediapipeDetector()
    yield detector
    detector.close()


@pytest.fixture(scope="module")
def portraits() -> list[np.ndarray]:
    """The frames of the goldens, which show one face some 70 px wide, at twice their size."""
    with np.load(Path(__file__).parents[1] / "goldens/align_io.npz") as recorded:
        frames = torch.from_numpy(recorded["frames"]).permute(0, 3, 1, 2)
    size = (2 * frames.shape[2], 2 * frames.shape[3])
    return list(lanczos4_resize(frames, size).permute(0, 2, 3, 1).contiguous().numpy())


def test_it_finds_brows_and_nose(detector: Detector, portraits):
    before = portraits[0].copy()
    found = detector.detect(portraits[0])
    np.testing.assert_array_equal(portraits[0], before)
    # Read off the enlarged picture: the middles of the brows' upper edges and the nose between bridge and wings.
    assert np.abs(found.landmarks - [[302, 134], [378, 138], [337, 187]]).max() <= 8
    np.testing.assert_array_equal(found.landmarks, np.round(found.landmarks))
    left, top, right, bottom = found.box
    assert left < 290 < 390 < right
    assert top < 125 < 240 < bottom
    assert found.score >= 0.5


def test_it_finds_a_held_face_again_from_its_surroundings(detector: Detector, portraits):
    for before, image in itertools.pairwise(portraits):
        held = detector.detect(before)
        whole, near = detector.detect(image), detector.detect_near(image, held)
        assert np.abs(near.landmarks - whole.landmarks).max() <= 2
        assert np.abs(np.subtract(near.box, whole.box)).max() <= 2
        assert near.score == held.score


@pytest.mark.parametrize(("right", "down", "larger"), [(0, 0, 0), (9, -6, 0), (-5, 8, 6), (4, 4, -7)])
def test_it_settles_where_the_face_is_wherever_it_began(detector: Detector, portraits, right, down, larger):
    whole = detector.detect(portraits[0])
    begun = np.add(whole.box, [right - larger, down - larger, right + larger, down + larger])
    near = detector.detect_near(portraits[0], replace(whole, box=tuple(begun)))
    assert np.abs(np.subtract(near.box, whole.box)).max() <= 1.5
    assert np.abs(near.landmarks - whole.landmarks).max() <= 1


@pytest.mark.parametrize("degrees", [-30, 20])
def test_it_finds_a_turned_face(detector: Detector, portraits, degrees):
    height, width = portraits[0].shape[:2]
    across, down = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turn = np.array([[across, down], [-down, across]])  # of the picture about its centre, clockwise
    centre = np.array([width, height]) / 2
    back = np.column_stack([turn, centre - turn @ centre])
    pixels = torch.from_numpy(portraits[0]).permute(2, 0, 1).float()
    grid = affine_grid(back[None], (width, height), (width, height), pixels.device)
    turned = bilinear_sample(pixels[None], grid)[0].byte().permute(1, 2, 0).contiguous().numpy()
    upright = detector.detect(portraits[0]).landmarks
    expected = (upright - centre) @ turn + centre
    assert np.abs(detector.detect(turned).landmarks - expected).max() <= 4


@pytest.mark.parametrize("times", [2, 5])
def test_it_finds_a_face_that_fills_a_large_frame(detector: Detector, portraits, times):
    small = portraits[0][40:320, 200:480]
    size = (times * small.shape[0], times * small.shape[1])
    large = lanczos4_resize(torch.from_numpy(small).permute(2, 0, 1), size).permute(1, 2, 0).contiguous().numpy()
    expected = (detector.detect(small).landmarks + 0.5) * times - 0.5
    assert np.abs(detector.detect(large).landmarks - expected).max() <= 2 * times


@pytest.mark.parametrize("cut", [310, 335, 380])
def test_it_takes_a_face_that_the_border_cuts(detector: Detector, portraits, cut):
    found = detector.detect(portraits[0][:, cut:])
    assert found is None or found.box[2] + cut > 380


def test_it_does_not_find_a_held_face_elsewhere_or_of_another_size(detector: Detector, portraits):
    held = detector.detect(portraits[0])
    moved = np.roll(portraits[0], 60, axis=1)
    assert detector.detect(moved) is not None
    assert detector.detect_near(moved, held) is None
    assert detector.detect_near(np.zeros_like(moved), held) is None
    left, top, right, bottom = held.box
    larger = replace(held, box=(left - 20, top - 20, right + 20, bottom + 20))
    assert detector.detect_near(portraits[0], larger) is None


@pytest.mark.parametrize("threads", [2, 8])
def test_it_gives_the_same_whatever_the_threads(detector: Detector, portraits, threads):
    frames = portraits * 3
    alone = [detector.detect(frame) for frame in frames]
    with ThreadPoolExecutor(threads) as pool:
        together = list(pool.map(detector.detect, frames))
        backwards = list(pool.map(detector.detect, frames[::-1]))[::-1]
    for one, two, three in zip(alone, together, backwards, strict=True):
        assert (one.box, one.score) == (two.box, two.score) == (three.box, three.score)
        assert one.landmarks.tolist() == two.landmarks.tolist() == three.landmarks.tolist()


def test_it_chooses_the_larger_of_two(detector: Detector, portraits):
    large, small = portraits[1], portraits[1][::2, ::2]
    for large_first in (True, False):
        frame = np.full((520, 1200, 3), 90, np.uint8)
        x_large, x_small = (0, 790) if large_first else (420, 10)
        frame[:512, x_large : x_large + 768] = large
        frame[:256, x_small : x_small + 384] = small
        expected = np.add(detector.detect(large).landmarks, [x_large, 0])
        assert np.abs(detector.detect(frame).landmarks - expected).max() <= 4


def test_it_finds_a_small_face_in_a_large_frame(detector: Detector, portraits):
    frame = np.full((2160, 3840, 3), 90, np.uint8)
    frame[1500:2012, 2900:3668] = portraits[0]
    found = detector.detect(frame)
    assert np.abs(found.landmarks - [3202, 1634] - ([0, 0], [76, 4], [35, 53])).max() <= 8


@pytest.mark.parametrize("shape", [(1, 1), (1, 3000), (3000, 1), (80, 50), (80, 3000), (3000, 64)])
def test_it_sees_no_face_in_noise(detector: Detector, shape):
    noise = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    assert detector.detect(noise) is None


def test_it_sees_no_face_in_a_plain_large_frame(detector: Detector):
    assert detector.detect(np.full((720, 1280, 3), 128, np.uint8)) is None


def test_a_face_that_is_too_small_is_none(detector: Detector, portraits):
    assert detector.detect(portraits[0][::4, ::4]) is None


def test_it_takes_flipped_and_read_only_frames(detector: Detector, portraits):
    mirrored = portraits[0][:, ::-1]
    copy = mirrored.copy()
    copy.flags.writeable = False
    assert detector.detect(mirrored).box == detector.detect(copy).box


def test_without_litert_the_fix_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    with pytest.raises(ModelError, match=r"face detector mediapipe cannot be used.*pip install ai-edge-litert"):
        make_detector("mediapipe", "cpu")


def test_a_damaged_network_file_is_a_model_error(tmp_path):
    (tmp_path / "cut.tflite").write_bytes(MESH.path.read_bytes()[:1000])
    with pytest.raises(ModelError, match=r"cut.tflite: LiteRT cannot run this network"):
        Network(replace(MESH, path=tmp_path / "cut.tflite"))


def test_it_is_quiet(portraits, capfd):
    hide_native_logs()
    detector = make_detector("mediapipe", "cpu")
    assert detector.detect(portraits[0]) is not None
    detector.close()
    assert capfd.readouterr() == ("", "")


# The mesh on aligned crops


@pytest.fixture(scope="module")
def crops(detector: Detector, portraits) -> list[np.ndarray]:
    matrices = [FaceTrack(256).update(0, False, detector.detect(image).landmarks) for image in portraits]
    aligned = [crop_face(image, matrix, 256) for image, matrix in zip(portraits, matrices, strict=True)]
    return [crop.permute(1, 2, 0).contiguous().numpy() for crop in aligned]


def test_the_mesh_of_a_crop_is_that_of_the_frame(detector: Detector, portraits, crops):
    mesh = FaceMesh()
    for image, crop in zip(portraits, crops, strict=True):
        found = detector.detect(image)
        inverse = invert_affine(FaceTrack(256).update(0, False, found.landmarks))
        points = mesh.points(crop) * np.array(face_size(256)) / 256 @ inverse[:, :2].T + inverse[:, 2]
        box = [*points.min(axis=0), *points.max(axis=0)]
        assert np.abs(np.subtract(box, found.box)).max() <= 4
    mesh.close()


# The inner lips of the first crop by mediapipe 0.10.21 itself (static_image_mode, refine_landmarks).
LIBRARY = [
    *([82.6, 140.6], [88.8, 141.1], [96.0, 141.7], [104.7, 142.7], [115.7, 144.0], [129.1, 145.0], [142.8, 143.7]),
    *([153.9, 142.2], [162.8, 141.0], [170.3, 140.2], [176.5, 139.6], [168.3, 145.5], [161.9, 149.4], [153.0, 153.1]),
    *([142.1, 155.9], [129.0, 157.1], [116.1, 156.1], [105.4, 153.6], [96.6, 150.0], [90.5, 146.2]),
]


def test_the_lips_are_where_the_library_finds_them(crops):
    mesh = FaceMesh()
    assert np.abs(mesh.points(crops[0])[list(INNER_LIPS)] - LIBRARY).max() <= 0.9
    mesh.close()


@pytest.mark.parametrize("degrees", [-15, 15])
def test_the_lips_turn_with_the_face_in_the_networks_picture(crops, degrees):
    across, down = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turn = np.array([[across, down], [-down, across]])
    middle = np.array([SIDE / 2, SIDE / 2])
    back = np.column_stack([turn, middle - turn @ middle])
    face = torch.from_numpy(crops[0]).permute(2, 0, 1)[None].float()
    upright = F.pad(F.interpolate(face, size=(128, 128), mode="bilinear", antialias=True), (32, 32, 32, 32))
    turned = bilinear_sample(upright, affine_grid(back[None], (SIDE, SIDE), (SIDE, SIDE), upright.device))
    mesh = AttentionMesh()
    expected, found = (
        mesh.run(picture[0].numpy())[0].reshape(-1, 3)[list(INNER_LIPS), :2] for picture in (upright, turned)
    )
    assert np.abs(found - ((expected - middle) @ turn + middle)).max() <= 2.5


def test_opening_and_width_are_shares_of_the_height_of_the_face():
    points = np.zeros((468, 2))
    points[[10, 152]] = [[50, 0], [50, 200]]  # forehead and chin
    points[[13, 14]] = [[48, 140], [48, 160]]  # upper and lower inner lip
    points[[78, 308]] = [[20, 150], [80, 150]]  # corners
    assert mouth_opening(points) == pytest.approx(0.1)
    assert mouth_width(points) == pytest.approx(0.3)


def test_a_crop_without_a_face_has_no_points():
    mesh = FaceMesh()
    assert mesh.points(np.full((256, 256, 3), 128, np.uint8)) is None
    mesh.close()


def test_the_points_of_a_crop_are_the_same_in_any_thread_and_order(crops):
    mesh = FaceMesh()
    alone = [mesh.points(crop).tolist() for crop in crops]
    with ThreadPoolExecutor(4) as pool:
        together = [points.tolist() for points in pool.map(mesh.points, [*crops, *crops[::-1]])]
    mesh.close()
    assert together == alone + alone[::-1]


def test_report_of_this_machine():
    assert detector_report()[-1] == DetectorStatus("mediapipe", True, True, None, "Apache 2.0")
