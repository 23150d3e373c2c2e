"""Choosing a face detector, and reporting what each one still needs on this machine."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch

from lipstream.errors import ModelError
from lipstream.face.detector import Detector, Face, choose
from lipstream.face.insightface import (
    LICENCE,
    InsightFaceDetector,
    insightface_problem,
    library_problem,
    models_present,
)
from lipstream.face.mediapipe.detector import MediapipeDetector
from lipstream.face.mediapipe.networks import litert_problem
from lipstream.face.quiet import Problem
from lipstream.settings import DetectorName

__all__ = ["Detector", "DetectorStatus", "Face", "auto_detector", "choose", "detector_report", "make_detector"]

logger = logging.getLogger(__name__)


def make_detector(name: DetectorName, device: torch.device | str) -> Detector:
    """Return the face detector of that name, ready to use; mediapipe always runs on the CPU.

    `auto` is what `auto_detector` returns, with a warning unless that is buffalo_s. Nothing is downloaded. Raises
    ModelError where a library or a file is missing or cannot be used.
    """
    if name == "auto":
        name, reason = auto_detector()
        log = logger.info if name == "buffalo_s" else logger.warning
        log("--detector auto takes %s: %s", name, reason)
    if name == "mediapipe":
        return MediapipeDetector()
    return InsightFaceDetector(name, device)


def auto_detector() -> tuple[DetectorName, str]:
    """Return what `--detector auto` takes on this machine, and why. Loads no model and uses no network.

    buffalo_s, which the published models were trained with, where InsightFace can be imported and the files are
    present; else mediapipe. Raises ModelError where neither can be used.
    """
    insightface = insightface_problem("buffalo_s")
    if insightface is None:
        return "buffalo_s", "its files are on this machine"
    litert = litert_problem()
    if litert is None:
        return "mediapipe", f"no buffalo_s, since {insightface.message}"
    raise ModelError(
        f"no face detector can be used: mediapipe, {litert.message}; buffalo_s, {insightface.message}", fix=litert.fix
    )


@dataclass(frozen=True)
class DetectorStatus:
    """Whether a detector can be used here; `problem` says what is missing and the fix, or is None.

    installed: its libraries can be imported. licence: of its model files.
    """

    name: str
    installed: bool
    models_present: bool
    problem: str | None
    licence: str


def detector_report() -> list[DetectorStatus]:
    """Return the state of every detector, without loading a model and without the network."""
    return [_insightface_status("buffalo_s"), _insightface_status("buffalo_l"), _mediapipe_status()]


def _insightface_status(name: str) -> DetectorStatus:
    problem = insightface_problem(name)
    return DetectorStatus(name, library_problem() is None, models_present(name), _described(problem), LICENCE)


def _mediapipe_status() -> DetectorStatus:
    problem = litert_problem()
    # Its model files are part of lipstream.
    return DetectorStatus("mediapipe", problem is None, True, _described(problem), "Apache 2.0")


def _described(problem: Problem | None) -> str | None:
    return None if problem is None else f"{problem.message}. Fix: {problem.fix}"
