"""Faces with InsightFace's buffalo models, which the published LatentSync was trained and runs with.

Works with InsightFace 0.7.3 and 2.x. The models' files are licensed for non-commercial research: they are fetched on
request only, by `fetch_models`.
"""

from __future__ import annotations

import contextlib
import importlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lipstream.errors import ModelError
from lipstream.face.detector import Face, has_room_for_a_face, usable
from lipstream.face.fetch import fetch_archive
from lipstream.face.quiet import IMPORT_ERRORS, Problem, import_problem, own_prints_dropped

LICENCE = "non-commercial research only"
"""What InsightFace allows its model files to be used for."""

# Of the 106 points: the brows' outer tips and upper edges; of the nose the lower bridge, both wings and the
# tip.
_LEFT_BROW = [43, 48, 49, 51, 50]
_RIGHT_BROW = [101, 102, 103, 104, 105]
_NOSE = [74, 77, 83, 86]

_MODULES = ["detection", "landmark_2d_106"]
_FILES = ("det_*.onnx", "2d106det.onnx")
_DETECTION_SIZE = (512, 512)
# Callers share one session: on a CPU each runs it in its own thread, on a GPU two keep it busy.
_CALLERS_ON_GPU = 2
_ALL_CALLERS = 2**16

RELEASE_URL = "https://github.com/deepinsight/insightface/releases/download/v0.7"
"""Where InsightFace publishes the files: NAME.zip."""
_SHA256 = {"buffalo_l": "80ffe37d8a5940d59a7384c201a2a38d4741f2f3c51eef46ebb28218a7b0ca2f"}


class InsightFaceDetector:
    """`Detector` with InsightFace's `buffalo_s` or `buffalo_l`: detection at 512 x 512 and 106 landmarks.

    Runs on the CUDA device given if the installed ONNX Runtime can, else on the CPU. The library gets BGR, as it
    documents; the published code passes RGB. Raises ModelError where the library or the models' files are missing or
    cannot be used, also from `detect`.
    """

    def __init__(self, name: str, device: torch.device | str) -> None:
        self.name = name
        problem = insightface_problem(name)
        if problem is not None:
            raise ModelError(f"face detector {name} cannot be used: {problem.message}", fix=problem.fix)
        onnxruntime = importlib.import_module("onnxruntime")
        self._cv2 = importlib.import_module("cv2")
        self._found = importlib.import_module("insightface.app.common").Face
        self._errors = _library_errors(self._cv2)
        providers, context = _providers(torch.device(device), onnxruntime.get_available_providers())
        self._callers = threading.BoundedSemaphore(_ALL_CALLERS if context < 0 else _CALLERS_ON_GPU)
        with (
            self._as_model_error(f"delete the folder and run `lipstream models download {name}`"),
            own_prints_dropped(),
        ):
            self._analysis = _analysis(name, providers, context, onnxruntime)
            # The library builds some of its sessions at the first picture.
            black = np.zeros((*_DETECTION_SIZE, 3), np.uint8)
            self._boxes(black)
            self._landmarks(black, Face((128.0, 128.0, 384.0, 384.0), 1.0, np.zeros((3, 2))))

    def detect(self, image: NDArray[np.uint8]) -> Face | None:
        """Return the largest usable face of a uint8 RGB frame (h, w, 3), or None."""
        # Landmarks of the chosen face only; the library's own `get` takes those of every face in the frame.
        return next(iter(self._detect(image, 1)), None)

    def detect_all(self, image: NDArray[np.uint8]) -> list[Face]:
        """Return all usable faces of a uint8 RGB frame (h, w, 3), from the largest to the smallest."""
        return self._detect(image, None)

    def _detect(self, image: NDArray[np.uint8], n_largest: int | None) -> list[Face]:
        if not has_room_for_a_face(image):
            return []
        with self._as_model_error("use --detector mediapipe, or --device cpu"), self._callers:
            bgr = self._cv2.cvtColor(np.ascontiguousarray(image), self._cv2.COLOR_RGB2BGR)
            chosen = usable(self._boxes(bgr))[:n_largest]
            return [replace(face, landmarks=self._landmarks(bgr, face)) for face in chosen]

    def detect_near(self, image: NDArray[np.uint8], held: Face) -> Face | None:
        """Search the whole frame, as `detect` does: the error of a search of the surroundings alone is unmeasured."""
        return self.detect(image)

    def close(self) -> None:
        """Free the models."""
        del self._analysis

    def _boxes(self, bgr: NDArray[np.uint8]) -> list[Face]:
        """Return the faces of a BGR picture, without landmarks."""
        boxes, _ = self._analysis.det_model.detect(bgr, max_num=0, metric="default")
        faces = []
        for box in boxes:
            left, top, right, bottom, score = (float(value) for value in box)
            faces.append(Face((left, top, right, bottom), score, np.zeros((3, 2))))
        return faces

    def _landmarks(self, bgr: NDArray[np.uint8], face: Face) -> NDArray[np.float64]:
        """Return brow and nose centres (3, 2) of a face."""
        found = self._found(bbox=np.array(face.box, np.float32), det_score=face.score)
        self._analysis.models["landmark_2d_106"].get(bgr, found)
        return _centres(found.landmark_2d_106)

    @contextlib.contextmanager
    def _as_model_error(self, fix: str) -> Iterator[None]:
        try:
            yield
        except self._errors as error:
            reason = " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
            raise ModelError(
                f"face detector {self.name} failed ({reason})", file=models_folder(self.name), fix=fix
            ) from error


def library_problem() -> Problem | None:
    """Return why InsightFace cannot be imported, or None."""
    try:
        for module in ("onnxruntime", "cv2", "insightface.app"):
            importlib.import_module(module)
    except IMPORT_ERRORS as error:
        return import_problem("lipstream[insightface]", error)
    return None


def insightface_problem(name: str) -> Problem | None:
    """Return why InsightFace's model of that name cannot be used here, or None; loads no model."""
    problem = library_problem()
    if problem is not None:
        return problem
    if not models_present(name):
        fix = f"lipstream models download {name} (licence: {LICENCE}), or use --detector mediapipe"
        return Problem(f"its files are not in {models_folder(name)}", fix)
    return None


def models_folder(name: str) -> Path:
    """Return the folder in which InsightFace keeps the files of a model."""
    return Path("~/.insightface/models").expanduser() / name


def models_present(name: str) -> bool:
    """Return whether the two models needed, face detection and 106 landmarks, are on this machine."""
    folder = models_folder(name)
    return all(any(folder.glob(pattern)) for pattern in _FILES)


def fetch_models(name: str, announce: Callable[[str], None], *, url: str = RELEASE_URL) -> Path:
    """Download InsightFace's model of that name, wholly or not at all, and return its folder.

    announce: is given lines for the user, the licence before anything is downloaded. url: the folder of NAME.zip.
    Raises ModelError.
    """
    folder = models_folder(name)
    announce(f"{name} is InsightFace's; its licence: {LICENCE}")
    if models_present(name):
        announce(f"{name} is there already")
        return folder
    fetch_archive(f"{url}/{name}.zip", folder, announce, needed=_FILES, sha256=_SHA256.get(name))
    return folder


def _analysis(name: str, providers: list[Any], context: int, onnxruntime: Any) -> Any:
    """Return the library's FaceAnalysis, each of its sessions running in the thread that calls it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    application = importlib.import_module("insightface.app")
    # By its path: 2.x takes a folder of that name in the working directory first.
    folder = str(models_folder(name))
    analysis = application.FaceAnalysis(folder, allowed_modules=_MODULES, providers=providers, sess_options=options)
    for module in _MODULES:
        model = analysis.models.get(module)
        if model is None:
            raise ValueError(f"no model for {module}")
        if model.session.get_session_options().intra_op_num_threads != 1:  # 0.7.3 drops the options
            model.session = onnxruntime.InferenceSession(model.model_file, options, providers=providers)
    analysis.prepare(ctx_id=context, det_size=_DETECTION_SIZE)
    return analysis


def _centres(landmarks: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Return brow and nose centres (3, 2) of the 106 points (106, 2)."""
    # As published: the 106 points are rounded before the means are taken, and the means again.
    points = np.round(landmarks).astype(np.int_)
    return np.round([points[indices].mean(axis=0) for indices in (_LEFT_BROW, _RIGHT_BROW, _NOSE)])


def _providers(device: torch.device, available: list[str]) -> tuple[list[Any], int]:
    """Return ONNX Runtime's providers for a device, and InsightFace's number for it (-1 for the CPU)."""
    if device.type == "cuda" and "CUDAExecutionProvider" in available:
        index = device.index or 0
        return [("CUDAExecutionProvider", {"device_id": index}), "CPUExecutionProvider"], index
    return ["CPUExecutionProvider"], -1


def _library_errors(cv2: Any) -> tuple[type[Exception], ...]:
    """Return what the library raises for bad files and failed runs. ONNX Runtime's errors have no base of their own."""
    kinds = vars(importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")).values()
    onnx = (kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Exception))
    own = (AssertionError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError)
    return (*own, cv2.error, *onnx)
