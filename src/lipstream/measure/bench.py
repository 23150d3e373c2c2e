"""Settings against one another: in one process, in turns, warmed up, with median and spread."""

from __future__ import annotations

import csv
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import date
from pathlib import Path
from typing import get_args

import torch

from lipstream.errors import OutputError, SettingsError
from lipstream.face.detect import Detector, make_detector
from lipstream.measure import machine, quality
from lipstream.measure.inputs import prepare
from lipstream.measure.subjects import Parts, Setting, StageName, Subject, make_subject
from lipstream.models.load import Model, load_model
from lipstream.settings import FRAME_RATE_HZ

Tell = Callable[[str], None]


@dataclass(frozen=True)
class BenchSettings:
    """What is run, on what and how often.

    video and speech None: the bundled sample's. synthetic: width and height in px of a clip made instead.
    duration_s: of the speech, whole where None.
    """

    settings: tuple[Setting, ...]
    stage: StageName = "all"
    video: Path | None = None
    speech: Path | None = None
    synthetic: tuple[int, int] | None = None
    duration_s: float | None = None
    repeats: int = 5

    def __post_init__(self) -> None:
        if self.stage not in get_args(StageName):
            raise SettingsError(f"stage = {self.stage!r}: must be one of {', '.join(get_args(StageName))}")
        if self.video is not None and self.synthetic is not None:
            raise SettingsError("a benchmark takes a video or a synthetic clip, not both")
        if self.duration_s is not None and self.duration_s * FRAME_RATE_HZ < 1:
            raise SettingsError(f"seconds = {self.duration_s}: must be at least {1 / FRAME_RATE_HZ}, one frame")
        if self.repeats < 1:
            raise SettingsError(f"repeats = {self.repeats}: must be at least 1")
        if self.stage != "all" and len({setting.sync.resolution for setting in self.settings}) > 1:
            raise SettingsError("the crops of one stage are compared pixel by pixel; give all settings one resolution")
        if any(setting.sync.loop == "trim" for setting in self.settings):
            raise SettingsError("loop = 'trim': a benchmark takes all the speech's frames; use pingpong or hold")


@dataclass(frozen=True)
class Row:
    """What one setting did; the columns are told in docs/measuring.md. None where it cannot be told."""

    date: str
    stage: str
    input: str
    setting: str
    words: str
    model: str
    device: str
    precision: str
    frames: int
    repeats: int
    seconds: float
    seconds_min: float
    seconds_max: float
    frames_per_s: float
    real_time_factor: float
    cpu_s: float
    gflop: float | None
    model_gflop_per_s: float | None
    matrix_gflop_per_s: float | None
    matrix_share: float | None
    peak_host_mb: float | None
    peak_device_mb: float | None
    psnr_db: float | None
    machine: str
    versions: str
    commit: str


@dataclass
class _Runs:
    """What was measured of one setting so far."""

    setting: Setting
    parts: Parts
    subject: Subject
    psnr_db: float | None = None
    seconds: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    matrix_flop_per_s: list[float] = field(default_factory=list)
    host_mb: list[float] = field(default_factory=list)
    device_mb: list[float] = field(default_factory=list)


def run(bench: BenchSettings, tell: Tell) -> list[Row]:
    """Run every setting once to warm up and compare it with the first, then `repeats` times in turns.

    Raises what loading and syncing raise; SettingsError for a device this machine has not.
    """
    with tempfile.TemporaryDirectory(prefix="lipstream-bench-") as name:
        folder = Path(name)
        inputs = prepare(folder, bench.video, bench.speech, duration_s=bench.duration_s, synthetic=bench.synthetic)
        loaded = _Loaded()
        try:
            runs = []
            for setting in bench.settings:
                parts = loaded.parts(setting)
                runs.append(_Runs(setting, parts, make_subject(bench.stage, setting, parts, inputs)))
            _warm_up(runs, tell)
            _take_turns(runs, bench.repeats, tell)
        finally:
            loaded.close()
    commit, versions = machine.commit(), machine.versions()
    return [_row(one, bench.stage, inputs.label, versions, commit) for one in runs]


class _Loaded:
    """Models and detectors, each loaded once however many settings share it."""

    def __init__(self) -> None:
        self._models: dict[tuple[str, torch.device, torch.dtype], Model] = {}
        self._detectors: dict[tuple[str, torch.device], Detector] = {}

    def parts(self, setting: Setting) -> Parts:
        device = setting.runtime.torch_device()
        key = (setting.model, device, setting.runtime.torch_dtype(device))
        if key not in self._models:
            self._models[key] = load_model(*key)
        if (setting.runtime.detector, device) not in self._detectors:
            self._detectors[setting.runtime.detector, device] = make_detector(setting.runtime.detector, device)
        return Parts(self._models[key], self._detectors[setting.runtime.detector, device])

    def close(self) -> None:
        for detector in self._detectors.values():
            detector.close()


def _warm_up(runs: Sequence[_Runs], tell: Tell) -> None:
    first = runs[0].subject
    reference = first.pictures() if first.pictures else None
    for one in runs:
        if one.subject.pictures is None or reference is None:
            one.subject.run()
            continue
        if one is not runs[0]:
            one.psnr_db = quality.psnr_db(reference, one.subject.pictures(), first.untouched)
        tell(f"{one.setting.name}: warmed up" + ("" if one.psnr_db is None else f", {one.psnr_db:.1f} dB"))


def _take_turns(runs: Sequence[_Runs], repeats: int, tell: Tell) -> None:
    rates = {key: machine.MatrixRate(*key) for key in {_place(one) for one in runs}}
    for turn in range(repeats):
        # There and back: what grows warmer or slower over time meets all settings alike.
        for one in runs if turn % 2 == 0 else reversed(runs):
            _measure(one, rates[_place(one)])
            tell(f"turn {turn + 1} of {repeats}: {one.setting.name} {one.seconds[-1]:.3f} s")


def _place(one: _Runs) -> tuple[torch.device, torch.dtype]:
    device = one.setting.runtime.torch_device()
    return device, one.setting.runtime.torch_dtype(device)


def _measure(one: _Runs, rate: machine.MatrixRate) -> None:
    device = _place(one)[0]
    if one.subject.flop is not None:
        one.matrix_flop_per_s.append(rate.flop_per_s())
    peak = machine.PeakMemory(device)
    peak.reset()
    machine.wait_for(device)
    begun_s, begun_cpu_s = time.perf_counter(), time.process_time()
    one.subject.run()
    machine.wait_for(device)
    one.seconds.append(time.perf_counter() - begun_s)
    one.cpu_s.append(time.process_time() - begun_cpu_s)
    for megabytes, found in ((one.host_mb, peak.host_mb()), (one.device_mb, peak.device_mb())):
        if found is not None:
            megabytes.append(found)


def _row(one: _Runs, stage: str, label: str, versions: str, commit: str) -> Row:
    device, dtype = _place(one)
    seconds, flop, frames = statistics.median(one.seconds), one.subject.flop, one.subject.frames
    matrix = statistics.median(one.matrix_flop_per_s) if one.matrix_flop_per_s else None
    return Row(
        date=date.today().isoformat(),
        stage=stage,
        input=label,
        setting=one.setting.name,
        words=one.setting.text,
        model=one.parts.model.config.name,
        device=str(device),
        precision=str(dtype).removeprefix("torch."),
        frames=frames,
        repeats=len(one.seconds),
        seconds=round(seconds, 4),
        seconds_min=round(min(one.seconds), 4),
        seconds_max=round(max(one.seconds), 4),
        frames_per_s=round(frames / seconds, 3),
        real_time_factor=round(seconds * FRAME_RATE_HZ / frames, 4),
        cpu_s=round(statistics.median(one.cpu_s), 4),
        gflop=None if flop is None else round(flop / 1e9, 3),
        model_gflop_per_s=None if flop is None else round(flop / seconds / 1e9, 2),
        matrix_gflop_per_s=None if matrix is None else round(matrix / 1e9, 2),
        matrix_share=None if flop is None or matrix is None else round(flop / seconds / matrix, 4),
        peak_host_mb=round(max(one.host_mb), 1) if one.host_mb else None,
        peak_device_mb=round(max(one.device_mb), 1) if one.device_mb else None,
        psnr_db=None if one.psnr_db is None else round(one.psnr_db, 2),
        machine=machine.machine(device),
        versions=versions,
        commit=commit,
    )


def check_csv(path: Path) -> None:
    """Refuse, before anything is run, a file that rows cannot be added to. Raises OutputError."""
    if not path.parent.is_dir():
        raise OutputError(f"{path}: its folder does not exist; create {path.parent} first")
    try:
        if path.exists() and path.stat().st_size and path.read_text("utf-8").splitlines()[0].split(",") != _COLUMNS:
            raise OutputError(f"{path}: its columns are others; name another file with -o")
    except (OSError, UnicodeDecodeError) as error:
        raise OutputError(f"{path}: cannot be added to ({error}); name another file with -o") from error


def add_to_csv(path: Path, rows: Sequence[Row]) -> None:
    """Add the rows to a CSV file, with a heading where it is new. Raises OutputError."""
    check_csv(path)
    try:
        is_new = not path.exists() or path.stat().st_size == 0
        with path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, _COLUMNS)
            if is_new:
                writer.writeheader()
            writer.writerows(asdict(row) for row in rows)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror}); name another file with -o") from error


_COLUMNS = [column.name for column in fields(Row)]
