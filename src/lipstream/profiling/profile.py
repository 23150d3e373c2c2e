"""Profile one run: time per stage, Python calls and a trace."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lipstream.engines.model import EngineModel
from lipstream.errors import OutputError, SettingsError
from lipstream.face.registry import make_detector
from lipstream.lipsync import LipSync
from lipstream.models.load import Model
from lipstream.models.unet import UNet
from lipstream.pipeline.build import load_networks
from lipstream.pipeline.clocks import Clocks, StageClock
from lipstream.pipeline.file_job import probe_inputs
from lipstream.profiling import machine
from lipstream.profiling.call_profile import CallProfile
from lipstream.profiling.trace import Trace
from lipstream.results import Progress, SyncResult
from lipstream.runtime.cpu import cores
from lipstream.runtime.device import torch_device
from lipstream.settings import RuntimeSettings, SyncSettings

logger = logging.getLogger(__name__)

CLIP, CALLS, STAGES, TABLE, TRACE = "synced.mp4", "profile.pstats", "stages.json", "stages.md", "trace.json"

_HEADINGS = {
    "name": "stage",
    "threads": "threads",
    "calls": "calls",
    "frames": "frames",
    "seconds": "seconds",
    "cpu_s": "CPU s",
    "frames_per_s": "frames/s",
    "share": "share",
    "waiting_for_input_s": "queue empty, s",
    "waiting_for_room_s": "queue full, s",
}


@dataclass(frozen=True)
class StageRow:
    """Times of one stage; seconds are summed over its threads (see docs/measuring.md).

    frames_per_s: throughput of the stage alone, on its threads. share: of the seconds of all stages.
    """

    name: str
    threads: int
    calls: int
    frames: int
    seconds: float
    cpu_s: float
    frames_per_s: float
    share: float
    waiting_for_input_s: float
    waiting_for_room_s: float


@dataclass(frozen=True)
class Report:
    """Result of a profiled run. process_cpu_s also contains the libraries' own threads, stages_cpu_s does not."""

    stages: tuple[StageRow, ...]
    slowest: str
    frames: int
    duration_s: float
    load_s: float
    wall_s: float
    real_time_factor: float
    stages_cpu_s: float
    process_cpu_s: float
    cores: int
    settings: dict[str, Any]
    machine: str
    versions: str
    commit: str

    def table(self) -> str:
        """Return the stages as a Markdown table."""
        rows = [list(_HEADINGS.values())] + [[_cell(getattr(row, name)) for name in _HEADINGS] for row in self.stages]
        widths = [max(len(row[i]) for row in rows) for i in range(len(_HEADINGS))]
        lines = ["| " + " | ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in rows]
        return "\n".join([lines[0], "|" + "|".join("-" * (w + 1) + ":" for w in widths) + "|", *lines[1:]])

    def summary(self) -> str:
        """Return two lines of text: the slowest stage, and wall time with CPU time."""
        slowest = next(row for row in self.stages if row.name == self.slowest)
        return (
            f"slowest stage: {slowest.name}, {slowest.frames_per_s:.1f} frames a second by itself\n"
            f"{self.frames} frames in {self.wall_s:.2f} s (real-time factor {self.real_time_factor:.2f}); CPU"
            f" {self.process_cpu_s:.2f} s, {self.stages_cpu_s:.2f} of them in the stages' own threads,"
            f" on {self.cores} cores"
        )


def _torch_unet(model: Model | EngineModel) -> UNet:
    if isinstance(model, EngineModel):
        raise SettingsError(f"the layers are torch's: {model.engine} does not tell them", fix="leave out --layers")
    return model.unet


def profile_sync(
    video: str | Path,
    speech: str | Path,
    folder: str | Path,
    model: str | Path,
    runtime: RuntimeSettings,
    settings: SyncSettings,
    *,
    layers: bool = False,
    overwrite: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> Report:
    """Run once and write the clip, the call profile, the stage table and the trace into `folder`.

    layers: record the U-Net's layers in the trace, which slows the run. overwrite: replace an earlier profile. Raises
    what LipSync raises, and OutputError if the folder cannot be written.
    """
    folder = Path(folder)
    _prepare(folder, overwrite=overwrite)
    calls = _call_profile()
    probe_inputs(video, speech, folder / CLIP, overwrite=overwrite)  # before the model is loaded, or downloaded
    begun_s = time.perf_counter()
    device = torch_device(runtime)
    detector = make_detector(runtime.detector, device)
    loaded = load_networks(model, runtime, device)
    sync = LipSync(loaded, detector, runtime)
    load_s = time.perf_counter() - begun_s

    trace, clocks = Trace(), Clocks.start()
    for clock in clocks.in_order():
        clock.on_span = trace.add_stage
    with ExitStack() as recorders:
        if layers:
            recorders.enter_context(trace.layers_of(_torch_unet(loaded), device))
        if calls is not None:
            recorders.enter_context(calls.recording())
        begun_cpu_s = time.process_time()
        result = sync(
            video, speech, folder / CLIP, settings, overwrite=overwrite, on_progress=on_progress, clocks=clocks
        )
        process_cpu_s = time.process_time() - begun_cpu_s
    detector.close()

    report = _report(result, clocks.in_order(), load_s, process_cpu_s, machine.machine(device))
    try:
        if calls is not None:
            calls.write(folder / CALLS)
        trace.write(folder / TRACE)
        (folder / STAGES).write_text(json.dumps(asdict(report), indent=2) + "\n", "utf-8")
        (folder / TABLE).write_text(f"{report.table()}\n\n{report.summary()}\n", "utf-8")
    except OSError as error:
        raise OutputError(f"cannot be written ({error.strerror})", file=folder, fix="free some space") from error
    return report


def _call_profile() -> CallProfile | None:
    """Return the call profiler; None, with a warning, if yappi is not installed: stages and trace do without it."""
    try:
        return CallProfile()
    except SettingsError as error:
        logger.warning("%s is not written: %s", CALLS, error)
        return None


def _prepare(folder: Path, *, overwrite: bool) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"folder cannot be created ({error.strerror})", file=folder, fix="choose another with -o"
        ) from error
    for name in (CALLS, STAGES, TABLE, TRACE):
        if not os.path.lexists(folder / name):
            continue
        if not overwrite:
            raise OutputError("already exists", file=folder / name, fix="choose another folder or add --overwrite")
        (folder / name).unlink()


def _report(
    result: SyncResult, clocks: Iterable[StageClock], load_s: float, process_cpu_s: float, machine_name: str
) -> Report:
    stages = _rows(list(clocks))
    return Report(
        stages=stages,
        slowest=min((row for row in stages if row.frames), key=lambda row: row.frames_per_s).name,
        frames=result.frames,
        duration_s=result.duration_s,
        load_s=round(load_s, 4),
        wall_s=round(result.wall_s, 4),
        real_time_factor=round(result.real_time_factor, 4),
        stages_cpu_s=round(sum(row.cpu_s for row in stages), 4),
        process_cpu_s=round(process_cpu_s, 4),
        cores=cores(),
        settings=result.settings,
        machine=machine_name,
        versions=machine.versions(),
        commit=machine.commit(),
    )


def _rows(clocks: list[StageClock]) -> tuple[StageRow, ...]:
    total_s = sum(clock.seconds for clock in clocks)
    return tuple(
        StageRow(
            name=clock.name,
            threads=clock.threads,
            calls=clock.calls,
            frames=clock.frames,
            seconds=round(clock.seconds, 4),
            cpu_s=round(clock.cpu_s, 4),
            frames_per_s=round(clock.frames * clock.threads / clock.seconds, 2),
            share=round(clock.seconds / total_s, 4),
            waiting_for_input_s=round(clock.waiting_for_input_s, 4),
            waiting_for_room_s=round(clock.waiting_for_room_s, 4),
        )
        for clock in clocks
    )


def _cell(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)
