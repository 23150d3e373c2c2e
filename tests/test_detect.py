"""Which face is chosen, how each back end fills in a Face, and what is said where a back end is missing."""

from __future__ import annotations

import os
import sys
import threading
import time
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from lipstream.errors import ModelError
from lipstream.evaluate.mouth import FaceMesh
from lipstream.face import insightface as insight
from lipstream.face import registry as detect
from lipstream.face.detector import Face, choose, is_near
from lipstream.face.quiet import import_mend, native_logs_hidden, own_prints_dropped
from lipstream.face.registry import DetectorStatus, detector_report, make_detector


def face(left: float, top: float, width: float, height: float, score: float = 0.9) -> Face:
    return Face((left, top, left + width, top + height), score, np.zeros((3, 2)))


# Choosing


def test_the_largest_usable_face_is_chosen():
    small, large, unsure = face(0, 0, 60, 90), face(200, 0, 100, 120), face(0, 0, 300, 300, score=0.49)
    assert choose([small, large, unsure]) is large
    assert choose([large, unsure, small]) is large
    assert choose([]) is None


@pytest.mark.parametrize(
    ("width", "height", "score", "usable"),
    [
        (50, 80, 0.5, True),
        (49.9, 80, 0.9, False),
        (50, 79.9, 0.9, False),
        (50, 80, 0.499, False),
        (150, 100, 0.9, True),
        (151, 100, 0.9, False),
        (60, 300, 0.9, True),
        (59, 300, 0.9, False),
    ],
)
def test_filters(width, height, score, usable):
    candidate = face(10, 20, width, height, score)
    assert choose([candidate]) is (candidate if usable else None)


@pytest.mark.parametrize(
    ("left", "top", "width", "height", "near"),
    [
        (100, 100, 100, 150, True),
        (129, 71, 100, 150, True),
        (131, 100, 100, 150, False),
        (100, 69, 100, 150, False),
        (90, 88, 115, 172, True),
        (88, 86, 120, 175, False),
        (108, 112, 84, 126, False),
    ],
)
def test_a_face_is_near_where_it_was_and_as_large(left, top, width, height, near):
    assert is_near(face(left, top, width, height), face(100, 100, 100, 150)) is near


# InsightFace, with a stand-in for the library


class StandInAnalysis:
    """What FaceAnalysis looks like from outside, in 0.7 and 2.1: it prints, it prepares, it holds two models."""

    instances: list[StandInAnalysis] = []  # noqa: RUF012

    def __init__(self, name: str, allowed_modules: list[str], providers: list) -> None:
        print("find model:", name)
        self.name, self.providers = name, providers
        self.det_model = types.SimpleNamespace(detect=self.detect)
        self.models = dict.fromkeys(allowed_modules)
        self.models["landmark_2d_106"] = types.SimpleNamespace(get=self.landmarks)
        self.asked: list[list[float]] = []
        self.instances.append(self)

    def prepare(self, ctx_id: int, det_size: tuple[int, int]) -> None:
        print("set det-size:", det_size)
        self.ctx_id, self.det_size = ctx_id, det_size

    def detect(self, image: np.ndarray, max_num: int, metric: str) -> tuple[np.ndarray, np.ndarray]:
        assert image.flags.c_contiguous
        assert (max_num, metric) == (0, "default")
        self.seen = image
        small, big = [300, 20, 390, 120, 0.9], [80, 20, 240, 220, 0.8]
        return np.array([small, big], np.float32), np.zeros((2, 5, 2), np.float32)

    def landmarks(self, image: np.ndarray, face: types.SimpleNamespace) -> None:
        assert image is self.seen
        self.asked.append(face.bbox.tolist())
        points = np.full((106, 2), 999.0)
        points[[43, 48, 49, 51, 50]] = [[100.4, 50.6], [101.4, 50.6], [102.4, 50.6], [103.4, 50.6], [104.4, 50.6]]
        points[101:106] = [[200, 52], [201, 52], [202, 52], [203, 52], [204, 54]]
        points[[74, 77, 83, 86]] = [[150, 90], [140, 101], [160, 101], [150, 100]]
        face.landmark_2d_106 = points


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> types.ModuleType:
    """A stand-in insightface whose files are present; answers of the network are refused."""
    app = types.ModuleType("insightface.app")
    app.FaceAnalysis = StandInAnalysis
    common = types.ModuleType("insightface.app.common")
    common.Face = types.SimpleNamespace
    opencv = types.ModuleType("cv2")
    opencv.COLOR_RGB2BGR = 4
    opencv.cvtColor = lambda image, code: np.ascontiguousarray(image[:, :, ::-1])
    storage = types.ModuleType("insightface.utils.storage")
    storage.BASE_REPO_URL = "http://models.invalid/files"
    utils = types.ModuleType("insightface.utils")
    utils.storage = storage
    errors = types.ModuleType("onnxruntime.capi.onnxruntime_pybind11_state")
    errors.InvalidProtobuf = type("InvalidProtobuf", (Exception,), {})
    runtime = types.ModuleType("onnxruntime")
    runtime.get_available_providers = lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    for module in (app, common, opencv, utils, storage, errors, runtime):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(sys.modules, "insightface", types.ModuleType("insightface"))
    monkeypatch.setattr(StandInAnalysis, "instances", [])
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("buffalo_s", "buffalo_l"):
        folder = tmp_path / ".insightface/models" / name
        folder.mkdir(parents=True)
        (folder / "2d106det.onnx").touch()
        (folder / "det_500m.onnx").touch()
    monkeypatch.setattr(insight, "_answers", lambda url: False)
    return app


def forget_files(tmp_path: Path, *, folder_too: bool) -> None:
    folder = tmp_path / ".insightface/models/buffalo_s"
    for file in folder.iterdir():
        file.unlink()
    if folder_too:
        folder.rmdir()


def test_insightface_landmarks_are_means_of_rounded_points(library):
    image = np.zeros((300, 400, 3), np.uint8)
    image[..., 0] = 200
    found = make_detector("buffalo_s", "cpu").detect(image)
    # 50.6 counts as 51 before the mean; 52.4 and 98.0 after it as 52 and 98.
    assert found.landmarks.tolist() == [[102, 51], [202, 52], [150, 98]]
    assert found.landmarks.dtype == np.float64
    assert found.box == (80, 20, 240, 220)
    assert found.score == pytest.approx(0.8)
    assert StandInAnalysis.instances[0].seen[0, 0].tolist() == [0, 0, 200]  # BGR
    assert StandInAnalysis.instances[0].asked == [[80, 20, 240, 220]]  # of the chosen face only


def test_insightface_searches_the_whole_frame_for_a_held_face_too(library):
    detector = make_detector("buffalo_s", "cpu")
    image = np.zeros((300, 400, 3), np.uint8)
    assert detector.detect_near(image, face(80, 20, 160, 200)).box == detector.detect(image).box


def test_insightface_without_a_usable_face_takes_no_landmarks(library, monkeypatch):
    detector = make_detector("buffalo_s", "cpu")
    analysis = StandInAnalysis.instances[0]
    none = np.zeros((0, 5), np.float32), np.zeros((0, 5, 2), np.float32)
    monkeypatch.setattr(analysis.det_model, "detect", lambda image, max_num, metric: none)
    assert detector.detect(np.zeros((300, 400, 3), np.uint8)) is None
    assert analysis.asked == []


@pytest.mark.parametrize("shape", [(1, 1), (79, 400), (3000, 49)])
def test_insightface_is_not_asked_about_frames_without_room_for_a_face(library, shape):
    detector = make_detector("buffalo_s", "cpu")
    assert detector.detect(np.zeros((*shape, 3), np.uint8)) is None
    assert not hasattr(StandInAnalysis.instances[0], "seen")


@pytest.mark.parametrize(
    ("device", "providers", "context"),
    [
        ("cpu", ["CPUExecutionProvider"], -1),
        ("mps", ["CPUExecutionProvider"], -1),
        ("cuda:1", [("CUDAExecutionProvider", {"device_id": 1}), "CPUExecutionProvider"], 1),
    ],
)
def test_insightface_is_set_up_for_the_device_in_silence(library, capfd, device, providers, context):
    detector = make_detector("buffalo_l", torch.device(device))
    analysis = StandInAnalysis.instances[0]
    assert detector.name == analysis.name == "buffalo_l"
    assert (analysis.providers, analysis.ctx_id, analysis.det_size) == (providers, context, (512, 512))
    assert capfd.readouterr() == ("", "")


def test_missing_files_without_a_network_name_the_folder_and_the_mend(library, tmp_path):
    forget_files(tmp_path, folder_too=True)
    with pytest.raises(ModelError, match=r"buffalo_s: the files in .*buffalo_s cannot be fetched .*mediapipe"):
        make_detector("buffalo_s", "cpu")


def test_missing_files_are_left_to_the_library_to_fetch(library, tmp_path, monkeypatch):
    forget_files(tmp_path, folder_too=True)
    asked = []
    monkeypatch.setattr(insight, "_answers", lambda url: asked.append(url) or True)
    assert make_detector("auto", "cpu").name == "buffalo_s"
    assert asked == ["http://models.invalid/files/buffalo_s.zip"]


def test_an_unreachable_server_is_given_up_within_seconds(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    start = time.monotonic()
    assert not insight._answers("http://127.0.0.1:9/buffalo_s.zip")
    assert time.monotonic() - start < 6


@pytest.mark.parametrize("failure", [AssertionError(), OSError("truncated"), "InvalidProtobuf"])
def test_damaged_files_are_a_model_error(library, monkeypatch, tmp_path, failure):
    if failure == "InvalidProtobuf":
        failure = sys.modules["onnxruntime.capi.onnxruntime_pybind11_state"].InvalidProtobuf("bad\nmodel")

    def refuse(self, **words):
        raise failure

    monkeypatch.setattr(StandInAnalysis, "__init__", refuse)
    with pytest.raises(ModelError, match=r"buffalo_s: the files in .* cannot be used .*delete that folder") as error:
        make_detector("buffalo_s", "cpu")
    assert "\n" not in str(error.value)


def test_a_missing_landmark_model_is_a_model_error(library, monkeypatch):
    prepare = StandInAnalysis.prepare

    def without_landmarks(self, **words):
        prepare(self, **words)
        del self.models["landmark_2d_106"]

    monkeypatch.setattr(StandInAnalysis, "prepare", without_landmarks)
    with pytest.raises(ModelError, match=r"cannot be used \(a model is missing\)"):
        make_detector("buffalo_s", "cpu")


# Which one


class StandInMediapipe:
    name = "mediapipe"


def test_auto_prefers_insightface_and_falls_back_to_mediapipe(library, monkeypatch, tmp_path):
    monkeypatch.setattr(detect, "MediapipeDetector", StandInMediapipe)
    assert make_detector("auto", "cpu").name == "buffalo_s"
    forget_files(tmp_path, folder_too=True)
    assert make_detector("auto", "cpu").name == "mediapipe"
    assert make_detector("mediapipe", "cpu").name == "mediapipe"


def test_auto_without_any_back_end_names_both_mends(monkeypatch):
    for name in ("insightface", "insightface.app", "ai_edge_litert.interpreter"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModelError, match=r"lipstream\[insightface\].*lipstream\[mediapipe\]"):
        make_detector("auto", "cpu")


class NoLibGL:
    """An importer for which OpenCV's system library is missing."""

    def find_spec(self, name, path=None, target=None):
        if name in ("mediapipe", "cv2"):
            raise ImportError("libGL.so.1: cannot open shared object file: No such file or directory")


@pytest.fixture
def without_libgl(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("mediapipe", "cv2"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(sys, "meta_path", [NoLibGL(), *sys.meta_path])


def test_without_the_library_that_measures_mouths_the_mend_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "mediapipe", None)
    with pytest.raises(ModelError, match=r"mouths cannot be measured.*lipstream\[measure\]"):
        FaceMesh()


def test_a_missing_system_library_is_a_model_error_with_the_mend(without_libgl):
    with pytest.raises(ModelError, match=r"libGL.so.1.*apt-get install libgl1"):
        FaceMesh()


def test_a_release_of_mediapipe_without_models_is_a_model_error(monkeypatch):
    bare = types.ModuleType("mediapipe")
    bare.__version__ = "0.10.99"
    monkeypatch.setitem(sys.modules, "mediapipe", bare)
    with pytest.raises(ModelError, match=r"0\.10\.99 holds no face models.*lipstream\[measure\]"):
        FaceMesh()


def test_import_mends():
    absent = ModuleNotFoundError("No module named 'onnxruntime'", name="onnxruntime")
    assert import_mend("insightface", absent) == 'onnxruntime is not installed; pip install "lipstream[insightface]"'
    assert "numpy" in import_mend("mediapipe", ImportError("numpy is too new"))


# The report


def test_report_says_what_is_missing(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(detect, "_package_folder", lambda name: None)
    assert detector_report() == [
        DetectorStatus(name, False, present, f'not installed; pip install "lipstream[{extra}]"')
        for name, extra, present in [
            ("buffalo_s", "insightface", False),
            ("buffalo_l", "insightface", False),
            ("mediapipe", "mediapipe", True),
        ]
    ]


def test_report_tells_present_files_from_absent_ones(library, monkeypatch, tmp_path):
    monkeypatch.setattr(detect, "_package_folder", lambda name: tmp_path)
    monkeypatch.setitem(sys.modules, "cv2", types.ModuleType("cv2"))
    forget_files(tmp_path, folder_too=False)
    small, large, mediapipe = detector_report()
    assert (small.models_present, large.models_present) == (False, True)
    assert "fetched at the first use" in small.problem
    assert large.problem is None
    assert mediapipe == DetectorStatus("mediapipe", True, True, None)


def test_report_names_a_missing_system_library(monkeypatch, tmp_path, without_libgl):
    monkeypatch.setattr(detect, "_package_folder", lambda name: tmp_path)
    assert all("libgl1" in status.problem for status in detector_report()[:2])


# Chatter


def test_only_the_own_prints_are_dropped(capsys):
    with own_prints_dropped():
        print("mine")
        other = threading.Thread(target=print, args=("of another thread",))
        other.start()
        other.join()
        assert not sys.stdout.closed
    print("after")
    assert capsys.readouterr().out == "of another thread\nafter\n"


def test_native_logs_are_dropped_and_the_rest_is_kept(capfd):
    with native_logs_hidden():
        os.write(2, b"W0000 00:00:1.5 7 file.cc:114] chatter\n")
        os.write(2, b"a traceback\n")
    os.write(2, b"W0000 after\n")
    assert capfd.readouterr().err == "a traceback\nW0000 after\n"
