"""Settings against one another: in one process, in turns, warmed up, with median and spread."""

from __future__ import annotations

import gc
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import get_args

import torch

from lipstream.errors import LipstreamError, ModelError, SettingsError
from lipstream.evaluate.lip_metrics import MouthFinder
from lipstream.evaluate.quality import Images, Quality, measure
from lipstream.face.registry import Detector, make_detector
from lipstream.models.load import Model, load_model
from lipstream.profiling import machine
from lipstream.runtime.device import dtypes, torch_device, torch_dtype
from lipstream.settings import FRAME_RATE_HZ, RuntimeSettings
from lipstream_lab.bench.cases import Parts, Setting, StageName, Subject, make_subject
from lipstream_lab.bench.clips import Clip, Inputs, prepare
from lipstream_lab.bench.csv_rows import Row

Tell = Callable[[str], None]
Keep = Callable[[Sequence[Row]], None]

# Settings that take turns with one another. More would lie too far apart in time to be compared, and all would be lost
# if the last was interrupted.
_TOGETHER = 8

_DIGITS = {
    "psnr_db": 2,
    "ssim": 5,
    "landmark_distance": 5,
    "opening_correlation": 4,
    "flicker": 3,
    "reference_flicker": 3,
}


@dataclass(frozen=True)
class BenchSettings:
    """What is run, on what and how often.

    video and speech None: the bundled sample's. synthetic: width and height in px of a clip made instead.
    duration_s: of the speech, whole where None. leave_out_failing: go on without a setting that cannot be run.
    """

    settings: tuple[Setting, ...]
    stage: StageName = "all"
    video: Path | None = None
    speech: Path | None = None
    synthetic: tuple[int, int] | None = None
    duration_s: float | None = None
    repeats: int = 5
    leave_out_failing: bool = False

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


@dataclass
class _Runs:
    """What was measured of one setting so far. Memory: the peak of a run while no other model was loaded, MB."""

    setting: Setting
    parts: Parts
    subject: Subject
    quality: Quality | None = None
    host_mb: float | None = None
    device_mb: float | None = None
    seconds: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    matrix_flop_per_s: list[float] = field(default_factory=list)


def run(bench: BenchSettings, tell: Tell, keep: Keep) -> list[Row]:
    """Run every setting once to warm up and compare it with the first, then `repeats` times in turns.

    Settings of one model come together, a few at a time, and no other model is in memory but the first setting's, which
    takes turns with all of them. keep: given the rows of each few as soon as they are measured; where an error or an
    interrupt ends the run, with the turns there were. Raises what loading and syncing raise; SettingsError for a device
    this machine has not.
    """
    rows: list[Row] = []
    commit, versions = machine.commit(), machine.versions()
    with tempfile.TemporaryDirectory(prefix="lipstream-bench-") as name, closing(_Loaded()) as loaded:
        folder = Path(name)
        inputs = prepare(folder, bench.video, bench.speech, duration_s=bench.duration_s, synthetic=bench.synthetic)
        comparison = _Comparison(bench, inputs, loaded, tell)
        for group in _groups(bench.settings):
            runs: list[_Runs] = []
            try:
                comparison.measure(group, runs)
            finally:
                done = [
                    _row(one, comparison.beside(runs), bench.stage, inputs.label, versions, commit)
                    for one in runs
                    if one.seconds and one.setting in group
                ]
                if done:
                    keep(done)
                rows += done
    return rows


def _groups(settings: Sequence[Setting]) -> list[list[Setting]]:
    """Settings of one model together, a few at a time; those of the first setting's model first."""
    alike: dict[object, list[Setting]] = {}
    for setting in settings:
        alike.setdefault(_model_key(setting), []).append(setting)
    return [some[i : i + _TOGETHER] for some in alike.values() for i in range(0, len(some), _TOGETHER)]


def _model_key(setting: Setting) -> tuple[str, RuntimeSettings]:
    """What a model is loaded by: all but how it is then run."""
    return setting.model, replace(setting.runtime, detector="auto", threads=None, batch=1, compile=False)


class _Loaded:
    """Models, detectors and what finds mouths, each loaded once however many settings share it."""

    def __init__(self) -> None:
        self._models: dict[tuple[str, RuntimeSettings], Model] = {}
        self._detectors: dict[tuple[str, torch.device], Detector] = {}
        self._finder: MouthFinder | None = None

    def parts(self, setting: Setting) -> Parts:
        key = _model_key(setting)
        if key not in self._models:
            device = torch_device(setting.runtime)
            runtime = setting.runtime
            self._models[key] = load_model(
                setting.model, device, dtypes(runtime, device), quantize=runtime.quantize, pruned=runtime.pruned
            )
        return Parts(self._models[key], self._detector(setting))

    def _detector(self, setting: Setting) -> Detector:
        key = (setting.runtime.detector, torch_device(setting.runtime))
        if key not in self._detectors:
            self._detectors[key] = make_detector(*key)
        return self._detectors[key]

    def finder(self, setting: Setting) -> MouthFinder:
        """With the setting's own detector. Raises ModelError where it cannot be used."""
        self._finder = self._finder or MouthFinder(self._detector(setting))
        return self._finder

    def forget_others(self, setting: Setting) -> None:
        """Let go of all models but the setting's."""
        key = _model_key(setting)
        self._models = {other: model for other, model in self._models.items() if other == key}
        gc.collect()

    def close(self) -> None:
        """Let go of everything."""
        if self._finder is not None:
            self._finder.close()
        for detector in self._detectors.values():
            detector.close()


class _Comparison:
    """Measures groups of settings, each beside the first of all: its pictures are kept, and it takes turns with all."""

    def __init__(self, bench: BenchSettings, inputs: Inputs, loaded: _Loaded, tell: Tell) -> None:
        self._bench, self._inputs, self._loaded, self._tell = bench, inputs, loaded, tell
        self._first = bench.settings[0]
        self._reference: Images | None = None
        self._untouched: Images | None = None
        self._finder: MouthFinder | None = None

    def measure(self, group: Sequence[Setting], runs: list[_Runs]) -> None:
        """Fill `runs` with what each setting of a group does, and with the first of all where it is not in it."""
        self._loaded.forget_others(group[0])
        for setting in group:
            try:
                one = self._ready(setting)
                self._warm_up(one)
                self._compare(one)
            except (LipstreamError, RuntimeError) as error:  # RuntimeError: how torch says what it cannot do
                if setting is self._first or not self._bench.leave_out_failing:
                    raise
                self._tell(f"{setting.name}: left out, {error}")
            else:
                runs.append(one)
        if not runs:
            return
        if self.beside(runs) is None:
            runs.append(self._ready(self._first))
            runs[-1].subject.run()
        self._take_turns(runs)

    def beside(self, runs: Sequence[_Runs]) -> _Runs | None:
        """The first of all settings, in these runs."""
        return next((one for one in runs if one.setting is self._first), None)

    def _ready(self, setting: Setting) -> _Runs:
        parts = self._loaded.parts(setting)
        return _Runs(setting, parts, make_subject(self._bench.stage, setting, parts, self._inputs))

    def _warm_up(self, one: _Runs) -> None:
        peak = machine.PeakMemory(_place(one)[0])
        peak.reset()
        one.subject.run()
        one.host_mb, one.device_mb = peak.host_mb(), peak.device_mb()

    def _compare(self, one: _Runs) -> None:
        pictures = None if one.subject.pictures is None else one.subject.pictures()
        if one.setting is self._first:
            self._reference, self._untouched = pictures, one.subject.untouched
            self._finder = self._find_mouths()
        elif pictures is not None and self._reference is not None:
            one.quality = measure(self._reference, pictures, self._untouched, finder=self._finder)
            if isinstance(pictures, Clip):
                pictures.path.unlink()  # without loss, it is large
        self._tell(f"{one.setting.name}: warmed up{_described(one.quality)}")

    def _find_mouths(self) -> MouthFinder | None:
        """None where there are no whole frames to find them in."""
        if self._bench.stage != "all":
            return None
        try:
            return self._loaded.finder(self._first)
        except ModelError as error:
            self._tell(f"mouths are not compared: {error}")
            return None

    def _take_turns(self, runs: Sequence[_Runs]) -> None:
        rates = {key: machine.MatrixRate(*key) for key in {_place(one) for one in runs}}
        for turn in range(self._bench.repeats):
            # There and back: what grows warmer or slower over time meets all settings alike.
            for one in runs if turn % 2 == 0 else reversed(runs):
                _measure(one, rates[_place(one)])
                self._tell(f"turn {turn + 1} of {self._bench.repeats}: {one.setting.name} {one.seconds[-1]:.3f} s")


def _described(quality: Quality | None) -> str:
    if quality is None:
        return ""
    words = "" if quality.psnr_db is None else f", {quality.psnr_db:.1f} dB"
    return words + ("" if quality.ssim is None else f", SSIM {quality.ssim:.4f}")


def _place(one: _Runs) -> tuple[torch.device, torch.dtype]:
    device = torch_device(one.setting.runtime)
    return device, torch_dtype(one.setting.runtime, device)


def _measure(one: _Runs, rate: machine.MatrixRate) -> None:
    device = _place(one)[0]
    if one.subject.flop is not None:
        one.matrix_flop_per_s.append(rate.flop_per_s())
    machine.wait_for(device)
    begun_s, begun_cpu_s = time.perf_counter(), time.process_time()
    one.subject.run()
    machine.wait_for(device)
    one.seconds.append(time.perf_counter() - begun_s)
    one.cpu_s.append(time.process_time() - begun_cpu_s)


def _row(one: _Runs, beside: _Runs | None, stage: str, label: str, versions: str, commit: str) -> Row:
    device, dtype = _place(one)
    seconds, flop, frames = statistics.median(one.seconds), one.subject.flop, one.subject.frames
    matrix = statistics.median(one.matrix_flop_per_s) if one.matrix_flop_per_s else None
    quality = one.quality
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
        speedup=_rounded(statistics.median(beside.seconds) / seconds if beside and beside.seconds else None, 3),
        frames_per_s=round(frames / seconds, 3),
        real_time_factor=round(seconds * FRAME_RATE_HZ / frames, 4),
        cpu_s=round(statistics.median(one.cpu_s), 4),
        gflop=None if flop is None else round(flop / 1e9, 3),
        model_gflop_per_s=None if flop is None else round(flop / seconds / 1e9, 2),
        matrix_gflop_per_s=None if matrix is None else round(matrix / 1e9, 2),
        matrix_share=None if flop is None or matrix is None else round(flop / seconds / matrix, 4),
        peak_host_mb=_rounded(one.host_mb, 1),
        peak_device_mb=_rounded(one.device_mb, 1),
        **_figures(quality),
        frames_without_face=None if quality is None else quality.frames_without_face,
        machine=machine.machine(device),
        versions=versions,
        commit=commit,
    )


def _figures(quality: Quality | None) -> dict[str, float | None]:
    return {
        name: None if quality is None else _rounded(getattr(quality, name), digits) for name, digits in _DIGITS.items()
    }


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)
