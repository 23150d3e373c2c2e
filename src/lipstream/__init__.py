"""lipstream: LatentSync lip-sync inference, streamed and dependable.

from lipstream import LipSync, SyncSettings
sync = LipSync.load("latentsync-1.6", device="cuda")
result = sync("in.mp4", "speech.wav", "out.mp4", SyncSettings(num_inference_steps=20, guidance_scale=1.5))
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lipstream.errors import (
    Cancelled,
    InputError,
    LipstreamError,
    ModelError,
    NoFaceError,
    OutOfMemoryError,
    OutputError,
    SettingsError,
)
from lipstream.version import __version__

if TYPE_CHECKING:
    from lipstream.diffusion.sampling import Denoiser
    from lipstream.face.chosen import FaceChoice
    from lipstream.face.detector import Detector, Face, MultiFaceDetector
    from lipstream.face.registry import make_detector
    from lipstream.jobs import JobResult, SyncJob
    from lipstream.lipsync import LipSync
    from lipstream.live.avatar import Avatar
    from lipstream.live.frames import LiveFrame, LiveSession, LiveSettings
    from lipstream.media.audio import SpeechInfo, read_mono
    from lipstream.media.reader import Frame, VideoInfo, read_frames
    from lipstream.models.load import Model
    from lipstream.pipeline.analyse import FaceTable
    from lipstream.pipeline.file_job import Inputs, probe_inputs
    from lipstream.results import GeneratedCrop, Progress, StageTime, SyncResult
    from lipstream.scale.segments import sync_in_segments
    from lipstream.settings import RuntimeSettings, SyncSettings

__all__ = [
    "Avatar",
    "Cancelled",
    "Denoiser",
    "Detector",
    "Face",
    "FaceChoice",
    "FaceTable",
    "Frame",
    "GeneratedCrop",
    "InputError",
    "Inputs",
    "JobResult",
    "LipSync",
    "LipstreamError",
    "LiveFrame",
    "LiveSession",
    "LiveSettings",
    "Model",
    "ModelError",
    "MultiFaceDetector",
    "NoFaceError",
    "OutOfMemoryError",
    "OutputError",
    "Progress",
    "RuntimeSettings",
    "SettingsError",
    "SpeechInfo",
    "StageTime",
    "SyncJob",
    "SyncResult",
    "SyncSettings",
    "VideoInfo",
    "__version__",
    "make_detector",
    "probe_inputs",
    "read_frames",
    "read_mono",
    "sync_in_segments",
]

_HOMES = {
    "Avatar": "lipstream.live.avatar",
    "Denoiser": "lipstream.diffusion.sampling",
    "Detector": "lipstream.face.detector",
    "Face": "lipstream.face.detector",
    "FaceChoice": "lipstream.face.chosen",
    "FaceTable": "lipstream.pipeline.analyse",
    "Frame": "lipstream.media.reader",
    "GeneratedCrop": "lipstream.results",
    "Inputs": "lipstream.pipeline.file_job",
    "JobResult": "lipstream.jobs",
    "LipSync": "lipstream.lipsync",
    "LiveFrame": "lipstream.live.frames",
    "LiveSession": "lipstream.live.frames",
    "LiveSettings": "lipstream.live.frames",
    "Model": "lipstream.models.load",
    "MultiFaceDetector": "lipstream.face.detector",
    "Progress": "lipstream.results",
    "RuntimeSettings": "lipstream.settings",
    "SpeechInfo": "lipstream.media.audio",
    "StageTime": "lipstream.results",
    "SyncJob": "lipstream.jobs",
    "SyncResult": "lipstream.results",
    "SyncSettings": "lipstream.settings",
    "VideoInfo": "lipstream.media.reader",
    "make_detector": "lipstream.face.registry",
    "probe_inputs": "lipstream.pipeline.file_job",
    "read_frames": "lipstream.media.reader",
    "read_mono": "lipstream.media.audio",
    "sync_in_segments": "lipstream.scale.segments",
}


def __getattr__(name: str) -> Any:
    # torch takes seconds to import: `import lipstream` and the errors should not wait for it.
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'lipstream' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
