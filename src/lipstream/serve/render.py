"""Do one job with a model that stays in memory until it has been idle for long."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from lipstream.results import Progress, SyncResult
from lipstream.settings import RuntimeSettings, SyncSettings

if TYPE_CHECKING:
    from lipstream.lipsync import LipSync

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Work:
    """What is to be made: local files, and how."""

    model: str
    settings: SyncSettings
    video: Path
    audio: Path
    output: Path


class Renderer(Protocol):
    """What a worker does its jobs with; all calls come from one thread, but for `loaded` and `memory_bytes`."""

    models: tuple[str, ...]
    device: str

    def __call__(self, work: Work, on_progress: Callable[[Progress], None], cancel: threading.Event) -> SyncResult:
        """Write `work.output`, whole or not at all. Raises what LipSync does."""

    def load(self) -> None:
        """Make ready for the first job. Raises ModelError."""

    def offload(self) -> None:
        """Free what can be loaded again."""

    @property
    def loaded(self) -> str | None:
        """The model in memory."""

    def memory_bytes(self) -> int:
        """Return what is taken of the device's memory, or by the process on a CPU."""


class ModelRenderer:
    """Does jobs with LipSync: one model in memory at a time. models: what clients call each, and where it is."""

    def __init__(self, models: Mapping[str, str], runtime: RuntimeSettings) -> None:
        self.models, self.device = tuple(models), runtime.device
        self._places, self._runtime = dict(models), runtime
        self._sync: LipSync | None = None
        self._name: str | None = None

    def __call__(self, work: Work, on_progress: Callable[[Progress], None], cancel: threading.Event) -> SyncResult:
        sync = self._resident(work.model)
        return sync(work.video, work.audio, work.output, work.settings, on_progress=on_progress, cancel=cancel)

    def load(self) -> None:
        from lipstream.runtime.device import torch_device

        self.device = str(torch_device(self._runtime))
        self._resident(self.models[0])

    def offload(self) -> None:
        if self._sync is not None:
            from lipstream.runtime.device import torch_device
            from lipstream.runtime.memory import free_caches

            self._sync.close()
            self._sync, name, self._name = None, self._name, None
            free_caches(torch_device(self._runtime))
            logger.info("model freed", extra={"model": name})

    @property
    def loaded(self) -> str | None:
        return self._name

    def memory_bytes(self) -> int:
        import torch

        from lipstream.runtime.device import torch_device

        device = torch_device(self._runtime)
        return int(torch.cuda.memory_reserved(device)) if device.type == "cuda" else resident_bytes()

    def _resident(self, name: str) -> LipSync:
        from lipstream.lipsync import LipSync

        if self._sync is None or self._name != name:
            self.offload()
            begun_s = time.perf_counter()
            self._sync = LipSync.load(self._places[name], self._runtime)
            self._name = name
            logger.info("model loaded", extra={"model": name, "seconds": round(time.perf_counter() - begun_s, 2)})
        return self._sync


def resident_bytes() -> int:
    """Return the memory of this process, bytes; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * 4096
