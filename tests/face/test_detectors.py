"""Which face is chosen, how each back end fills in a Face, and the errors where a back end is missing or fails."""

from __future__ import annotations

import logging
import os
import sys
import threading
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.face import write_files
from lipstream.errors import ModelError
from lipstream.face import quiet as libraries
from lipstream.face.detector import Face, choose, is_near
from lipstream.face.quiet import hide_native_logs, import_problem, native_logs_hidden, own_prints_dropped
from lipstream.face.registry import DetectorStatus, auto_detector, detector_report, make_detector


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


class StandInSession:
    """ONNX Runtime's session, with the threads that it was given."""

    def __init__(self, file: str, options: types.SimpleNamespace, providers: list) -> None:
        self.file, self.options, self.providers = file, options, providers

    def get_session_options(self) -> types.SimpleNamespace:
        return self.options


def session_options() -> types.SimpleNamespace:
    return types.SimpleNamespace(intra_op_num_threads=0, inter_op_num_threads=0)


class StandInAnalysis:
    """FaceAnalysis as it looks from outside in 0.7.3 and 2.1: it prints, it prepares, it holds two models."""

    instances: list[StandInAnalysis] = []  # noqa: RUF012
    takes_options = True

    def __init__(self, name: str, allowed_modules: list[str], providers: list, sess_options: object) -> None:
        print("find model:", name)
        self.name, self.providers = name, providers
        options = sess_options if self.takes_options else session_options()
        sessions = {module: StandInSession(f"{module}.onnx", options, providers) for module in allowed_modules}
        calls = {"detection": {"detect": self.detect}, "landmark_2d_106": {"get": self.landmarks}}
        self.models = {
            module: types.SimpleNamespace(session=session, model_file=session.file, **calls[module])
            for module, session in sessions.items()
        }
        self.det_model = self.models["detection"]
        self.asked: list[list[float]] = []
        self.pictures: list[np.ndarray] = []
        self.instances.append(self)

    def prepare(self, ctx_id: int, det_size: tuple[int, int]) -> None:
        print("set det-size:", det_size)
        self.ctx_id, self.det_size = ctx_id, det_size

    def detect(self, image: np.ndarray, max_num: int, metric: str) -> tuple[np.ndarray, np.ndarray]:
        assert image.flags.c_contiguous
        assert (max_num, metric) == (0, "default")
        self.pictures.append(image)
        small, big = [300, 20, 390, 120, 0.9], [80, 20, 240, 220, 0.8]
        return np.array([small, big], np.float32), np.zeros((2, 5, 2), np.float32)

    def landmarks(self, image: np.ndarray, face: types.SimpleNamespace) -> None:
        assert image is self.pictures[-1]
        self.asked.append(face.bbox.tolist())
        points = np.full((106, 2), 999.0)
        points[[43, 48, 49, 51, 50]] = [[100.4, 50.6], [101.4, 50.6], [102.4, 50.6], [103.4, 50.6], [104.4, 50.6]]
        points[101:106] = [[200, 52], [201, 52], [202, 52], [203, 52], [204, 54]]
        points[[74, 77, 83, 86]] = [[150, 90], [140, 101], [160, 101], [150, 100]]
        face.landmark_2d_106 = points


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> types.ModuleType:
    """A stand-in insightface whose files are present."""
    app = types.ModuleType("insightface.app")
    app.FaceAnalysis = StandInAnalysis
    common = types.ModuleType("insightface.app.common")
    common.Face = types.SimpleNamespace
    opencv = types.ModuleType("cv2")
    opencv.COLOR_RGB2BGR = 4
    opencv.error = type("error", (Exception,), {})
    opencv.cvtColor = lambda image, code: np.ascontiguousarray(image[:, :, ::-1])
    errors = types.ModuleType("onnxruntime.capi.onnxruntime_pybind11_state")
    errors.InvalidProtobuf = type("InvalidProtobuf", (Exception,), {})
    runtime = types.ModuleType("onnxruntime")
    runtime.get_available_providers = lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    runtime.SessionOptions = session_options
    runtime.InferenceSession = StandInSession
    for module in (app, common, opencv, errors, runtime):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(sys.modules, "insightface", types.ModuleType("insightface"))
    monkeypatch.setattr(StandInAnalysis, "instances", [])
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("buffalo_s", "buffalo_l"):
        write_files(tmp_path, name)
    return app


def forget_files(tmp_path: Path) -> None:
    folder = tmp_path / ".insightface/models/buffalo_s"
    for file in folder.iterdir():
        file.unlink()
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
    analysis = StandInAnalysis.instances[0]
    assert analysis.pictures[-1][0, 0].tolist() == [0, 0, 200]  # BGR
    assert analysis.asked[1:] == [[80, 20, 240, 220]]  # of the chosen face only


def test_insightface_searches_the_whole_frame_for_a_held_face_too(library):
    detector = make_detector("buffalo_s", "cpu")
    image = np.zeros((300, 400, 3), np.uint8)
    assert detector.detect_near(image, face(80, 20, 160, 200)).box == detector.detect(image).box


def test_insightface_without_a_usable_face_takes_no_landmarks(library, monkeypatch):
    detector = make_detector("buffalo_s", "cpu")
    analysis = StandInAnalysis.instances[0]
    none = np.zeros((0, 5), np.float32), np.zeros((0, 5, 2), np.float32)
    monkeypatch.setattr(analysis.det_model, "detect", lambda image, max_num, metric: none)
    before = len(analysis.asked)
    assert detector.detect(np.zeros((300, 400, 3), np.uint8)) is None
    assert len(analysis.asked) == before


@pytest.mark.parametrize("shape", [(1, 1), (79, 400), (3000, 49)])
def test_insightface_is_not_asked_about_frames_without_room_for_a_face(library, shape):
    detector = make_detector("buffalo_s", "cpu")
    before = len(StandInAnalysis.instances[0].pictures)
    assert detector.detect(np.zeros((*shape, 3), np.uint8)) is None
    assert len(StandInAnalysis.instances[0].pictures) == before


@pytest.mark.parametrize(
    ("device", "providers", "context"),
    [
        ("cpu", ["CPUExecutionProvider"], -1),
        ("mps", ["CPUExecutionProvider"], -1),
        ("cuda:1", [("CUDAExecutionProvider", {"device_id": 1}), "CPUExecutionProvider"], 1),
    ],
)
def test_insightface_is_set_up_for_the_device_in_silence(library, tmp_path, capfd, device, providers, context):
    detector = make_detector("buffalo_l", torch.device(device))
    analysis = StandInAnalysis.instances[0]
    assert detector.name == "buffalo_l"
    assert (analysis.providers, analysis.ctx_id, analysis.det_size) == (providers, context, (512, 512))
    assert capfd.readouterr() == ("", "")


def test_a_folder_of_its_name_in_the_working_directory_is_not_the_model(library, tmp_path, monkeypatch):
    (tmp_path / "here/buffalo_s").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    make_detector("buffalo_s", "cpu")
    assert StandInAnalysis.instances[0].name == str(tmp_path / ".insightface/models/buffalo_s")


@pytest.mark.parametrize("takes_options", [True, False])
def test_every_session_runs_in_the_thread_that_calls_it(library, monkeypatch, takes_options):
    monkeypatch.setattr(StandInAnalysis, "takes_options", takes_options)
    make_detector("buffalo_s", "cpu")
    for module, model in StandInAnalysis.instances[0].models.items():
        options = model.session.get_session_options()
        assert (options.intra_op_num_threads, options.inter_op_num_threads) == (1, 1)
        assert model.session.file == f"{module}.onnx"
        assert model.session.providers == ["CPUExecutionProvider"]


@pytest.mark.parametrize(("device", "most"), [("cuda", 2), ("cpu", 6)])
def test_on_a_gpu_two_threads_call_at_once(library, monkeypatch, device, most):
    detector = make_detector("buffalo_s", device)
    analysis = StandInAnalysis.instances[0]
    lock, inside, seen, full = threading.Lock(), [], [], threading.Barrier(most)

    def counted(image: np.ndarray, max_num: int, metric: str) -> tuple[np.ndarray, np.ndarray]:
        with lock:
            inside.append(None)
            seen.append(len(inside))
        full.wait(10)
        with lock:
            inside.pop()
        return np.zeros((0, 5), np.float32), np.zeros((0, 5, 2), np.float32)

    monkeypatch.setattr(analysis.det_model, "detect", counted)
    image = np.zeros((300, 400, 3), np.uint8)
    threads = [threading.Thread(target=detector.detect, args=(image,)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert max(seen) == most
    assert len(seen) == 6


@pytest.mark.parametrize("failure", [AssertionError(), OSError("truncated"), "InvalidProtobuf"])
@pytest.mark.parametrize("when", ["__init__", "prepare", "detect", "landmarks"])
def test_trouble_while_loading_is_a_model_error(library, monkeypatch, tmp_path, failure, when):
    if failure == "InvalidProtobuf":
        failure = sys.modules["onnxruntime.capi.onnxruntime_pybind11_state"].InvalidProtobuf("bad\nmodel")

    def refuse(self, *values, **options):
        raise failure

    monkeypatch.setattr(StandInAnalysis, when, refuse)
    with pytest.raises(ModelError, match=r"delete the folder and run `lipstream models download buffalo_s`") as error:
        make_detector("buffalo_s", "cpu")
    assert error.value.file == str(tmp_path / ".insightface/models/buffalo_s")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("failure", [RuntimeError("no memory"), "error"])
def test_trouble_with_a_frame_is_a_model_error(library, monkeypatch, failure):
    detector = make_detector("buffalo_s", "cpu")
    error = sys.modules["cv2"].error("no memory") if failure == "error" else failure

    def refuse(*values, **options):
        raise error

    monkeypatch.setattr(StandInAnalysis.instances[0].models["landmark_2d_106"], "get", refuse)
    with pytest.raises(ModelError, match=r"buffalo_s failed \(no memory\).*--detector mediapipe"):
        detector.detect(np.zeros((300, 400, 3), np.uint8))


def test_a_missing_landmark_model_is_a_model_error(library, monkeypatch):
    make = StandInAnalysis.__init__

    def without_landmarks(self, *values, **options):
        make(self, *values, **options)
        del self.models["landmark_2d_106"]

    monkeypatch.setattr(StandInAnalysis, "__init__", without_landmarks)
    with pytest.raises(ModelError, match=r"no model for landmark_2d_106"):
        make_detector("buffalo_s", "cpu")


# Which one


def test_auto_takes_buffalo_s_where_its_files_are(library, caplog):
    assert auto_detector() == ("buffalo_s", "its files are on this machine")
    assert make_detector("auto", "cpu").name == "buffalo_s"
    assert caplog.records == []


def test_auto_warns_that_it_takes_mediapipe_and_downloads_nothing(library, caplog, tmp_path):
    forget_files(tmp_path)
    assert make_detector("auto", "cpu").name == "mediapipe"
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "auto takes mediapipe: no buffalo_s, since its files are not in" in record.getMessage()
    assert not (tmp_path / ".insightface/models/buffalo_s").exists()


def test_auto_without_insightface_takes_mediapipe(library, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert auto_detector() == ("mediapipe", "no buffalo_s, since onnxruntime is not installed")


def test_a_named_detector_without_files_names_the_command_that_fetches_them(library, tmp_path):
    forget_files(tmp_path)
    with pytest.raises(ModelError, match=r"its files are not in .*buffalo_s") as error:
        make_detector("buffalo_s", "cpu")
    assert error.value.fix.startswith("lipstream models download buffalo_s (licence: non-commercial")


def test_auto_without_any_back_end_is_a_model_error(monkeypatch):
    for name in ("onnxruntime", "ai_edge_litert.interpreter"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModelError, match=r"no face detector.*ai_edge_litert.interpreter.*onnxruntime"):
        make_detector("auto", "cpu")


def test_import_problems_carry_the_fix():
    absent = ModuleNotFoundError("No module named 'onnxruntime'", name="onnxruntime")
    assert import_problem("lipstream[insightface]", absent) == (
        "onnxruntime is not installed",
        'pip install "lipstream[insightface]"',
    )
    message, fix = import_problem("ai-edge-litert", ImportError("numpy is\ntoo new"))
    assert message == "ai-edge-litert cannot be imported (numpy is too new)"
    assert fix == "pip install --force-reinstall ai-edge-litert"
    assert "libgl1" in import_problem("lipstream[insightface]", ImportError("libGL.so.1: cannot open")).fix


@pytest.mark.parametrize(
    "error", [ImportError("built for numpy 1"), AttributeError("np.int"), ValueError("size changed")]
)
def test_a_library_that_breaks_at_its_import_is_a_model_error(library, monkeypatch, error):
    class Broken:
        def find_spec(self, name, path=None, target=None):
            if name == "cv2":
                raise error

    monkeypatch.delitem(sys.modules, "cv2")
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    with pytest.raises(ModelError, match="cannot be imported"):
        make_detector("buffalo_s", "cpu")
    assert auto_detector()[0] == "mediapipe"


# The report


def test_report_says_what_is_missing(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("onnxruntime", "ai_edge_litert.interpreter"):
        monkeypatch.setitem(sys.modules, name, None)
    problem = 'onnxruntime is not installed. Fix: pip install "lipstream[insightface]"'
    litert = "ai_edge_litert.interpreter is not installed. Fix: pip install ai-edge-litert"
    assert detector_report() == [
        DetectorStatus("buffalo_s", False, False, problem, "non-commercial research only"),
        DetectorStatus("buffalo_l", False, False, problem, "non-commercial research only"),
        DetectorStatus("mediapipe", False, True, litert, "Apache 2.0"),
    ]


def test_report_tells_present_files_from_absent_ones(library, tmp_path):
    forget_files(tmp_path)
    small, large, mediapipe = detector_report()
    assert (small.models_present, large.models_present) == (False, True)
    assert "lipstream models download buffalo_s (licence: non-commercial research only)" in small.problem
    assert large.problem is None
    assert mediapipe == DetectorStatus("mediapipe", True, True, None, "Apache 2.0")


# Output of the libraries


def test_only_the_own_prints_are_dropped(capsys):
    with own_prints_dropped():
        print("mine")
        other = threading.Thread(target=print, args=("of another thread",))
        other.start()
        other.join()
        assert not sys.stdout.closed
    print("after")
    assert capsys.readouterr().out == "of another thread\nafter\n"


@pytest.fixture
def hiding(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Whether native logs are hidden; not yet."""
    event = threading.Event()
    monkeypatch.setattr(libraries, "_hiding", event)
    return event


def test_native_logs_are_dropped_for_a_program_that_asks_for_it(hiding, capfd):
    hide_native_logs()
    with native_logs_hidden():
        os.write(2, b"W0000 00:00:1.5 7 file.cc:114] chatter\n")
        os.write(2, b"a traceback\n")
    os.write(2, b"W0000 after\n")
    assert capfd.readouterr().err == "a traceback\nW0000 after\n"


def test_a_library_leaves_file_descriptors_alone(hiding, capfd):
    before = os.fstat(2)
    with native_logs_hidden():
        assert os.fstat(2) == before
        os.write(2, b"W0000 00:00:1.5 7 file.cc:114] chatter\n")
    assert "chatter" in capfd.readouterr().err
