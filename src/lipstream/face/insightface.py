"""Faces with InsightFace's buffalo models, which the published LatentSync was trained and runs with.

The library fetches the models' files at their first use; they are licensed for non-commercial research.
"""

from __future__ import annotations

import http.client
import importlib
import queue
import threading
import urllib.error
import urllib.request
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lipstream.errors import ModelError
from lipstream.face.detector import Face, choose, has_room_for_a_face
from lipstream.face.quiet import import_mend, own_prints_dropped

# Of the 106 points: the brows' outer tips and upper edges; of the nose the lower bridge, both wings and the
# tip.
_LEFT_BROW = [43, 48, 49, 51, 50]
_RIGHT_BROW = [101, 102, 103, 104, 105]
_NOSE = [74, 77, 83, 86]

_MODULES = ["detection", "landmark_2d_106"]
_DETECTION_SIZE = (512, 512)
_PATIENCE_S = 5.0


class InsightFaceDetector:
    """`Detector` with InsightFace's `buffalo_s` or `buffalo_l`: detection at 512 x 512 and 106 landmarks.

    Runs on the CUDA device given, where the ONNX Runtime installed can, else on the CPU. The library gets
    BGR, as it documents; the published code hands it RGB. Raises ModelError where the library or the models'
    files are missing and cannot be fetched.
    """

    def __init__(self, name: str, device: torch.device | str) -> None:
        self.name = name
        try:
            onnxruntime = importlib.import_module("onnxruntime")
            self._cv2 = importlib.import_module("cv2")
            from insightface.app import FaceAnalysis
            from insightface.app.common import Face as FoundFace
        except ImportError as error:
            raise ModelError(f"face detector {name}: {import_mend('insightface', error)}") from error
        if not models_present(name):
            _require_reachable(name)

        self._found = FoundFace
        providers, context = _providers(torch.device(device), onnxruntime.get_available_providers())
        try:
            with own_prints_dropped():
                self._analysis = FaceAnalysis(name=name, allowed_modules=_MODULES, providers=providers)
                self._analysis.prepare(ctx_id=context, det_size=_DETECTION_SIZE)
        except _loading_errors() as error:
            raise _unusable(name, " ".join(str(error).split())[:200] or "a model is missing") from error
        if any(module not in self._analysis.models for module in _MODULES):
            raise _unusable(name, "a model is missing")

    def detect(self, image: NDArray[np.uint8]) -> Face | None:
        """The largest usable face of a uint8 RGB frame (h, w, 3), or None."""
        if not has_room_for_a_face(image):
            return None
        bgr = self._cv2.cvtColor(np.ascontiguousarray(image), self._cv2.COLOR_RGB2BGR)
        boxes, _ = self._analysis.det_model.detect(bgr, max_num=0, metric="default")
        chosen = choose(_face(box) for box in boxes)
        if chosen is None:
            return None
        # Landmarks of the chosen face only; the library's own `get` takes those of every face in the frame.
        found = self._found(bbox=np.array(chosen.box, np.float32), det_score=chosen.score)
        self._analysis.models["landmark_2d_106"].get(bgr, found)
        return replace(chosen, landmarks=_centres(found.landmark_2d_106))

    def detect_near(self, image: NDArray[np.uint8], held: Face) -> Face | None:
        """As `detect`: how far off a search of the surroundings alone would be has not been measured."""
        return self.detect(image)

    def close(self) -> None:
        """Let go of the models."""
        del self._analysis


def models_folder(name: str) -> Path:
    """Where InsightFace keeps the files of a model."""
    return Path("~/.insightface/models").expanduser() / name


def models_present(name: str) -> bool:
    """Whether the two models needed, face detection and 106 landmarks, are on this machine."""
    folder = models_folder(name)
    return (folder / "2d106det.onnx").is_file() and any(folder.glob("det_*.onnx"))


def _face(box: NDArray[np.float32]) -> Face:
    """A face without landmarks from the detector's (left, top, right, bottom, score)."""
    left, top, right, bottom, score = (float(value) for value in box)
    return Face((left, top, right, bottom), score, np.zeros((3, 2)))


def _centres(landmarks: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Brow and nose centres (3, 2) of the 106 points (106, 2)."""
    # As published: the 106 points are rounded before the means are taken, and the means again.
    points = np.round(landmarks).astype(np.int_)
    return np.round([points[indices].mean(axis=0) for indices in (_LEFT_BROW, _RIGHT_BROW, _NOSE)])


def _providers(device: torch.device, available: list[str]) -> tuple[list[Any], int]:
    """ONNX Runtime's providers for a device, and InsightFace's number for it (-1 for the CPU)."""
    if device.type == "cuda" and "CUDAExecutionProvider" in available:
        index = device.index or 0
        return [("CUDAExecutionProvider", {"device_id": index}), "CPUExecutionProvider"], index
    return ["CPUExecutionProvider"], -1


def _require_reachable(name: str) -> None:
    """Raise ModelError, within seconds, where the library's own download would hang or fail."""
    from insightface.utils import storage

    # A folder that is there but incomplete is not fetched again by the library; its failure tells the mend.
    if not models_folder(name).exists() and not _answers(f"{storage.BASE_REPO_URL}/{name}.zip"):
        raise _unusable(name, "their server does not answer")


def _answers(url: str) -> bool:
    """Whether a server has the file at an address. Asked in a thread: looking up names has no time limit."""
    answer: queue.SimpleQueue[bool] = queue.SimpleQueue()

    def ask() -> None:
        request = urllib.request.Request(url, method="HEAD")
        try:
            with urllib.request.urlopen(request, timeout=_PATIENCE_S):
                answer.put(True)
        except urllib.error.HTTPError as refusal:
            refusal.close()
            answer.put(False)
        except (OSError, http.client.HTTPException):
            answer.put(False)

    threading.Thread(target=ask, daemon=True).start()
    try:
        return answer.get(timeout=_PATIENCE_S)
    except queue.Empty:
        return False


def _unusable(name: str, reason: str) -> ModelError:
    folder = models_folder(name)
    if folder.exists():
        what, mend = "used", "delete that folder and try again, to fetch them anew"
    else:
        what = "fetched"
        mend = 'put them there, or use --detector mediapipe (pip install "lipstream[mediapipe]")'
    return ModelError(f"face detector {name}: the files in {folder} cannot be {what} ({reason}); {mend}")


def _loading_errors() -> tuple[type[Exception], ...]:
    """What a failed download, a missing or a damaged file raises. ONNX Runtime's errors have no base of their own."""
    kinds = vars(importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")).values()
    onnx = (kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Exception))
    return (AssertionError, OSError, RuntimeError, ValueError, zipfile.BadZipFile, *onnx)
