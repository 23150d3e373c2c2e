"""What this machine has and what is missing, as plain data for `lipstream doctor`."""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path

import av
import diffusers
import torch

from lipstream.face.detect import detector_report
from lipstream.models.load import describe_models
from lipstream.version import __version__


@dataclass(frozen=True)
class Finding:
    """One thing looked at. detail: what was found, or what is missing and the mend."""

    name: str
    ok: bool
    detail: str


def examine() -> list[Finding]:
    """Look at the machine. Loads no model and asks no network."""
    return [
        Finding("lipstream", True, f"{__version__}, Python {platform.python_version()}, {platform.platform()}"),
        Finding(
            "libraries",
            True,
            f"torch {torch.__version__}, diffusers {diffusers.__version__}, PyAV {av.__version__}",
        ),
        _h264(),
        _device(),
        *_detectors(),
        *(Finding(model.name, model.is_here, model.place) for model in describe_models()),
        _disk(),
    ]


def _h264() -> Finding:
    if "libx264" in av.codecs_available:
        return Finding("H.264", True, "libx264 is in this PyAV")
    return Finding(
        "H.264", False, 'this PyAV has no libx264; pip install --force-reinstall --only-binary=av "av>=17.1"'
    )


def _device() -> Finding:
    cpu = f"cpu, {os.cpu_count()} cores, {torch.get_num_threads()} torch threads"
    if torch.cuda.is_available():
        gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        names = ", ".join(f"{gpu.name} ({gpu.total_memory / 2**30:.0f} GiB)" for gpu in gpus)
        return Finding("device", True, f"cuda: {names}; {cpu}")
    return Finding("device", True, f"{cpu}; no CUDA device seen")


def _detectors() -> list[Finding]:
    statuses = detector_report()
    findings = [Finding(s.name, s.problem is None, s.problem or "ready") for s in statuses]
    if not any(finding.ok for finding in findings):
        mend = 'pip install "lipstream[mediapipe]" (models included) or "lipstream[insightface]" (downloads them)'
        findings.append(Finding("faces", False, f"no face detector is ready: {mend}"))
    return findings


def _disk() -> Finding:
    free_gb = shutil.disk_usage(Path.cwd()).free / 1e9
    return Finding("disk", free_gb > 1, f"{free_gb:.1f} GB free here")
