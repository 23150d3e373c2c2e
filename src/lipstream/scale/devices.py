"""Several devices in one process: one replica of the model on each."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch

from lipstream.engines.export import OnGraph
from lipstream.errors import SettingsError
from lipstream.jobs import SyncJob
from lipstream.lipsync import LipSync
from lipstream.results import SyncResult
from lipstream.runtime.device import torch_device
from lipstream.scale.segments import sync_in_segments
from lipstream.settings import ALL_DEVICES, DetectorName, RuntimeSettings


def each_device(devices: Sequence[str], runtime: RuntimeSettings) -> list[RuntimeSettings]:
    """Return the settings of a replica on each device, ALL_DEVICES being every CUDA device of this machine.

    devices: as `lipstream.settings.device_names` returns them. Raises SettingsError for a device that this machine does
    not have, and for devices of different kinds, which do not compute the same frames.
    """
    if list(devices) == [ALL_DEVICES]:
        devices = [f"cuda:{index}" for index in range(torch.cuda.device_count())] or ["cuda:0"]
    each = [replace(runtime, device=name) for name in devices]
    kinds = {torch_device(one).type for one in each}
    if len(kinds) > 1:
        raise SettingsError(
            f"devices {','.join(devices)} are of {len(kinds)} kinds, which do not compute the same frames",
            fix="name devices of one kind",
            setting="device",
        )
    return each


@contextmanager
def replicas(
    model: str | Path, each: Sequence[RuntimeSettings], on_export: OnGraph | None = None
) -> Iterator[list[LipSync]]:
    """Yield a LipSync on each device. on_export: see LipSync.load. Raises as that does."""
    with ExitStack() as loaded:
        first = loaded.enter_context(LipSync.load(model, each[0], on_export=on_export))
        # The detector is chosen once: the first says which, and why.
        others = [replace(runtime, detector=cast("DetectorName", first.detector.name)) for runtime in each[1:]]
        yield [first, *(loaded.enter_context(LipSync.load(model, runtime)) for runtime in others)]


def whole_files(
    sync: LipSync, work: str | Path | None, cancel: threading.Event | None
) -> Callable[[SyncJob], SyncResult]:
    """Return what does a job with one LipSync, in segments that are kept in `work` if that is given."""

    def done(job: SyncJob) -> SyncResult:
        files = (job.video, job.audio, job.output, job.settings)
        if work is None:
            return sync(*files, overwrite=job.overwrite, cancel=cancel)
        return sync_in_segments([sync], *files, work=work, overwrite=job.overwrite, cancel=cancel)

    return done
