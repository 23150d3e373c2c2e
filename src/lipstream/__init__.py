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
    from lipstream.lipsync import LipSync
    from lipstream.results import Progress, StageTime, SyncResult
    from lipstream.settings import RuntimeSettings, SyncSettings

__all__ = [
    "Cancelled",
    "InputError",
    "LipSync",
    "LipstreamError",
    "ModelError",
    "NoFaceError",
    "OutOfMemoryError",
    "OutputError",
    "Progress",
    "RuntimeSettings",
    "SettingsError",
    "StageTime",
    "SyncResult",
    "SyncSettings",
    "__version__",
]

_HOMES = {
    "LipSync": "lipstream.lipsync",
    "Progress": "lipstream.results",
    "StageTime": "lipstream.results",
    "SyncResult": "lipstream.results",
    "RuntimeSettings": "lipstream.settings",
    "SyncSettings": "lipstream.settings",
}


def __getattr__(name: str) -> Any:
    # torch takes seconds to import: `import lipstream` and the errors should not wait for it.
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'lipstream' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
