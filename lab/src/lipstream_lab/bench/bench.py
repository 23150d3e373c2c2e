"""Benchmark settings against each other: in one process, warmed up, interleaved, with median and spread."""

from __future__ import annotations

import gc
import statistics
import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import get_args

import torch

from lipstream.engines.model import EngineModel
from lipstream.errors import LipstreamError, ModelError, SettingsError
from lipstream.evaluate.lip_metrics import MouthFinder
from lipstream.evaluate.quality import Images, Quality, measure
from lipstream.face.registry import Detector, make_detector
from lipstream.models.load import Model
from lipstream.pipeline.build import load_networks
from lipstream.profiling import machine
from lipstream.profiling.clips import Clip, Inputs, check_run_lengths, prepare
from lipstream.profiling.turns import in_turns, timed
from lipstream.runtime.device import torch_device, torch_dtype
from lipstream.settings import FRAME_RATE_HZ, RuntimeSettings
from lipstream_lab.bench.cases import Case, Parts, Setting, StageName, make_case
from lipstream_lab.bench.csv_rows import Row

Report = Callable[[str], None]
"""Receives lines of progress."""

Save = Callable[[Sequence[Row]], None]
"""Receives the rows of a group as soon as they are measured."""

# Settings that are interleaved. With more, the turns of one setting lie too far apart in time, and an interruption
# loses more.
_GROUP_SIZE = 8

_DIGITS = {
    "psnr_db": 2,
    "ssim": 5,
    "landmark_distance": 5,
    "opening_correlation": 4,
    "flicker": 3,
    "reference_flicker": 3,
    "sharpness": 1,
    "reference_sharpness": 1,
    "edge_step": 2,
    "reference_edge_step": 2,
}


@dataclass(frozen=True)
class BenchSettings:
    """What to run, on which inputs and how often.

    video, speech: None takes the bundled sample's. synthetic: (width, height) in pixels of a clip to generate instead
    of a video. duration_s: use this much of the speech; None uses all. skip_failing: continue without a setting that
    fails.
    """

    settings: tuple[Setting, ...]
    stage: StageName = "all"
    video: Path | None = None
    speech: Path | None = None
    synthetic: tuple[int, int] | None = None
    duration_s: float | None = None
    repeats: int = 5
    skip_failing: bool = False

    def __post_init__(self) -> None:
        if self.stage not in get_args(StageName):
            raise SettingsError(
                f"stage = {self.stage!r}: not a stage",
                fix=f"use one of {', '.join(get_args(StageName))}",
                setting="stage",
            )
        if self.video is not None and self.synthetic is not None:
            raise SettingsError("a benchmark takes a video or a synthetic clip, not both", fix="leave one out")
        check_run_lengths(self.duration_s, self.repeats, [setting.sync for setting in self.settings])
        if self.stage != "all" and len({setting.sync.resolution for setting in self.settings}) > 1:
            raise SettingsError(
                "the crops of a stage are compared pixel by pixel and differ in size",
                fix="give all settings one resolution",
            )


@dataclass
class _Measured:
    """Measurements of one setting so far. host_mb, device_mb: peaks of a run with no other model loaded."""

    setting: Setting
    parts: Parts
    case: Case
    quality: Quality | None = None
    host_mb: float | None = None
    device_mb: float | None = None
    seconds: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    matrix_flop_per_s: list[float] = field(default_factory=list)


def run(bench: BenchSettings, report: Report, save: Save) -> list[Row]:
    """Run every setting once to warm up and to compare it with the first, then `repeats` times in turns.

    Settings that share a model are measured in groups. Only their model and that of the first setting, which takes
    turns with every group, are in memory then. If an error or an interrupt ends the run, `save` still receives the rows
    of the current group, with the turns completed so far. Raises what loading and running raise, and SettingsError for
    a device that this machine does not have.
    """
    rows: list[Row] = []
    commit, versions = machine.commit(), machine.versions()
    with tempfile.TemporaryDirectory(prefix="lipstream-bench-") as name, closing(_Loaded()) as loaded:
        folder = Path(name)
        inputs = prepare(folder, bench.video, bench.speech, duration_s=bench.duration_s, synthetic=bench.synthetic)
        comparison = _Comparison(bench, inputs, loaded, report)
        for group in _groups(bench.settings):
            measured: list[_Measured] = []
            try:
                comparison.measure(group, measured)
            finally:
                done = [
                    _row(one, comparison.baseline(measured), bench.stage, inputs.label, versions, commit)
                    for one in measured
                    if one.seconds and one.setting in group
                ]
                if done:
                    save(done)
                rows += done
    return rows


def _groups(settings: Sequence[Setting]) -> list[list[Setting]]:
    """Group settings by model, at most _GROUP_SIZE in each, beginning with the first setting's model."""
    by_model: dict[object, list[Setting]] = {}
    for setting in settings:
        by_model.setdefault(_model_key(setting), []).append(setting)
    return [some[i : i + _GROUP_SIZE] for some in by_model.values() for i in range(0, len(some), _GROUP_SIZE)]


def _model_key(setting: Setting) -> tuple[str, RuntimeSettings]:
    """Return what determines the loaded model, that is all but the options of running it."""
    return setting.model, replace(setting.runtime, detector="auto", threads=None, batch=1, compile=False)


class _Loaded:
    """Cache of models, detectors and the mouth finder, shared by settings."""

    def __init__(self) -> None:
        self._models: dict[tuple[str, RuntimeSettings], Model | EngineModel] = {}
        self._detectors: dict[tuple[str, torch.device], Detector] = {}
        self._finder: MouthFinder | None = None

    def parts(self, setting: Setting) -> Parts:
        key = _model_key(setting)
        if key not in self._models:
            self._models[key] = load_networks(setting.model, setting.runtime, torch_device(setting.runtime))
        return Parts(self._models[key], self._detector(setting))

    def _detector(self, setting: Setting) -> Detector:
        key = (setting.runtime.detector, torch_device(setting.runtime))
        if key not in self._detectors:
            self._detectors[key] = make_detector(*key)
        return self._detectors[key]

    def finder(self, setting: Setting) -> MouthFinder:
        """Return the mouth finder, with the setting's detector. Raises ModelError if it cannot be used."""
        self._finder = self._finder or MouthFinder(self._detector(setting))
        return self._finder

    def unload_others(self, setting: Setting) -> None:
        """Free all models but the setting's."""
        key = _model_key(setting)
        self._models = {other: model for other, model in self._models.items() if other == key}
        gc.collect()

    def close(self) -> None:
        """Close the detectors and the finder."""
        if self._finder is not None:
            self._finder.close()
        for detector in self._detectors.values():
            detector.close()


class _Comparison:
    """Measures groups of settings against the first setting, the baseline of speed and quality."""

    def __init__(self, bench: BenchSettings, inputs: Inputs, loaded: _Loaded, report: Report) -> None:
        self._bench, self._inputs, self._loaded, self._report = bench, inputs, loaded, report
        self._first = bench.settings[0]
        self._reference: Images | None = None
        self._untouched: Images | None = None
        self._finder: MouthFinder | None = None

    def measure(self, group: Sequence[Setting], measured: list[_Measured]) -> None:
        """Append the measurements of each setting of a group, and of the baseline if it is not in it."""
        self._loaded.unload_others(group[0])
        for setting in group:
            try:
                one = self._prepared(setting)
                self._warm_up(one)
                self._compare(one)
            except (LipstreamError, RuntimeError) as error:  # torch raises RuntimeError for what it does not support
                if setting is self._first or not self._bench.skip_failing:
                    raise
                self._report(f"{setting.name}: skipped, {error}")
            else:
                measured.append(one)
        if not measured:
            return
        if self.baseline(measured) is None:
            measured.append(self._prepared(self._first))
            measured[-1].case.run()
        self._take_turns(measured)

    def baseline(self, measured: Sequence[_Measured]) -> _Measured | None:
        """Return the measurements of the first setting, if it is among them."""
        return next((one for one in measured if one.setting is self._first), None)

    def _prepared(self, setting: Setting) -> _Measured:
        parts = self._loaded.parts(setting)
        return _Measured(setting, parts, make_case(self._bench.stage, setting, parts, self._inputs))

    def _warm_up(self, one: _Measured) -> None:
        peak = machine.PeakMemory(_device_and_dtype(one)[0])
        peak.reset()
        one.case.run()
        one.host_mb, one.device_mb = peak.host_mb(), peak.device_mb()

    def _compare(self, one: _Measured) -> None:
        pictures = None if one.case.pictures is None else one.case.pictures()
        if one.setting is self._first:
            self._reference, self._untouched = pictures, one.case.untouched
            self._finder = self._find_mouths()
        elif pictures is not None and self._reference is not None:
            one.quality = measure(self._reference, pictures, self._untouched, finder=self._finder)
            if isinstance(pictures, Clip):
                pictures.path.unlink()  # lossless, so large
        self._report(f"{one.setting.name}: warmed up{_described(one.quality)}")

    def _find_mouths(self) -> MouthFinder | None:
        """Return the mouth finder, or None if it cannot be used or the stage has no whole frames."""
        if self._bench.stage != "all":
            return None
        try:
            return self._loaded.finder(self._first)
        except ModelError as error:
            self._report(f"no mouth metrics: {error}")
            return None

    def _take_turns(self, measured: Sequence[_Measured]) -> None:
        rates = {key: machine.MatrixRate(*key) for key in {_device_and_dtype(one) for one in measured}}
        for turn, one in in_turns(measured, self._bench.repeats):
            _measure(one, rates[_device_and_dtype(one)])
            self._report(f"turn {turn} of {self._bench.repeats}: {one.setting.name} {one.seconds[-1]:.3f} s")


def _described(quality: Quality | None) -> str:
    if quality is None:
        return ""
    text = "" if quality.psnr_db is None else f", {quality.psnr_db:.1f} dB"
    return text + ("" if quality.ssim is None else f", SSIM {quality.ssim:.4f}")


def _device_and_dtype(one: _Measured) -> tuple[torch.device, torch.dtype]:
    device = torch_device(one.setting.runtime)
    return device, torch_dtype(one.setting.runtime, device)


def _measure(one: _Measured, rate: machine.MatrixRate) -> None:
    if one.case.flop is not None:
        one.matrix_flop_per_s.append(rate.flop_per_s())
    timing = timed(one.case.run, _device_and_dtype(one)[0])
    one.seconds.append(timing.wall_s)
    one.cpu_s.append(timing.cpu_s)


def _row(one: _Measured, baseline: _Measured | None, stage: str, label: str, versions: str, commit: str) -> Row:
    device, dtype = _device_and_dtype(one)
    seconds, flop, frames = statistics.median(one.seconds), one.case.flop, one.case.frames
    matrix = statistics.median(one.matrix_flop_per_s) if one.matrix_flop_per_s else None
    quality = one.quality
    return Row(
        date=date.today().isoformat(),
        stage=stage,
        input=label,
        setting=one.setting.name,
        options=one.setting.text,
        model=one.parts.model.config.name,
        device=str(device),
        precision=str(dtype).removeprefix("torch."),
        frames=frames,
        repeats=len(one.seconds),
        seconds=round(seconds, 4),
        seconds_min=round(min(one.seconds), 4),
        seconds_max=round(max(one.seconds), 4),
        speedup=_rounded(statistics.median(baseline.seconds) / seconds if baseline and baseline.seconds else None, 3),
        frames_per_s=round(frames / seconds, 3),
        real_time_factor=round(seconds * FRAME_RATE_HZ / frames, 4),
        cpu_s=round(statistics.median(one.cpu_s), 4),
        gflop=None if flop is None else round(flop / 1e9, 3),
        model_gflop_per_s=None if flop is None else round(flop / seconds / 1e9, 2),
        matrix_gflop_per_s=None if matrix is None else round(matrix / 1e9, 2),
        matrix_share=None if flop is None or matrix is None else round(flop / seconds / matrix, 4),
        peak_host_mb=_rounded(one.host_mb, 1),
        peak_device_mb=_rounded(one.device_mb, 1),
        **_metrics(quality),
        frames_without_face=None if quality is None else quality.frames_without_face,
        machine=machine.machine(device),
        versions=versions,
        commit=commit,
    )


def _metrics(quality: Quality | None) -> dict[str, float | None]:
    return {
        name: None if quality is None else _rounded(getattr(quality, name), digits) for name, digits in _DIGITS.items()
    }


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)
