"""Choosing a face detector, and telling what each one still needs on this machine."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path

import torch

from lipstream.errors import ModelError
from lipstream.face.detector import Detector, Face, choose
from lipstream.face.insightface import InsightFaceDetector, models_folder, models_present
from lipstream.face.mediapipe.detector import MediapipeDetector
from lipstream.face.quiet import import_mend
from lipstream.settings import DetectorName

__all__ = ["Detector", "DetectorStatus", "Face", "choose", "detector_report", "make_detector"]


def make_detector(name: DetectorName, device: torch.device | str) -> Detector:
    """The face detector of that name, ready to use; mediapipe always runs on the CPU.

    `auto` is buffalo_s where InsightFace is installed and its files are present or can be fetched, else
    mediapipe. Raises ModelError that tells what is missing and the mend.
    """
    if name == "mediapipe":
        return MediapipeDetector()
    if name != "auto":
        return InsightFaceDetector(name, device)
    try:
        return InsightFaceDetector("buffalo_s", device)
    except ModelError as first:
        try:
            return MediapipeDetector()
        except ModelError as second:
            raise ModelError(f"no face detector can be used: {first}; {second}") from second


@dataclass(frozen=True)
class DetectorStatus:
    """Whether a detector can be used here; `problem` names what is missing and the mend, or is None."""

    name: str
    installed: bool
    models_present: bool
    problem: str | None


def detector_report() -> list[DetectorStatus]:
    """The state of every detector, without loading one and without the network."""
    return [_insightface_status("buffalo_s"), _insightface_status("buffalo_l"), _mediapipe_status()]


def _insightface_status(name: str) -> DetectorStatus:
    installed = _package_folder("insightface") is not None and _package_folder("onnxruntime") is not None
    present = models_present(name)
    problem = _insightface_problem(installed)
    if problem is None and not present:
        problem = f"its files are not in {models_folder(name)}; they are fetched at the first use"
    return DetectorStatus(name, installed, present, problem)


def _mediapipe_status() -> DetectorStatus:
    installed = _package_folder("ai_edge_litert") is not None
    problem = None if installed else _not_installed("mediapipe")
    return DetectorStatus("mediapipe", installed, True, problem)  # its models come with lipstream


def _package_folder(name: str) -> Path | None:
    spec = importlib.util.find_spec(name)
    return Path(spec.origin).parent if spec and spec.origin else None


def _not_installed(extra: str) -> str:
    return f'not installed; pip install "lipstream[{extra}]"'


def _insightface_problem(installed: bool) -> str | None:
    if not installed:
        return _not_installed("insightface")
    try:
        importlib.import_module("cv2")
    except ImportError as error:
        return import_mend("insightface", error)
    return None
