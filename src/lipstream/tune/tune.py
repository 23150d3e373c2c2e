"""Find the fastest settings for a clip above given floors: search, measure the best again in turns, write a preset."""

from __future__ import annotations

import hashlib
import json
import statistics
import tempfile
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

from lipstream.errors import SettingsError
from lipstream.evaluate.plots import figure_class
from lipstream.media.atomic import check_beside, write_whole
from lipstream.models.locate import read_config
from lipstream.models.small_vae import has_taesd
from lipstream.preset_file import PresetFile
from lipstream.profiling import machine
from lipstream.profiling.clips import check_run_lengths
from lipstream.profiling.turns import in_turns
from lipstream.runtime.device import torch_device
from lipstream.settings import FRAME_RATE_HZ, EngineName, RuntimeSettings, SyncSettings
from lipstream.tune.floors import Floor
from lipstream.tune.measure import Runner
from lipstream.tune.report import Trial, plot, table, to_csv
from lipstream.tune.space import Candidate, Space, search_space
from lipstream.tune.study import Study, load_optuna

# The first part of the clip, on which a bad setting is stopped: two windows.
_PART_S = 32 / FRAME_RATE_HZ
_FINALISTS = 3

# Fields that are the clip's or the machine's, not a preset's.
_NOT_OF_A_PRESET = (
    "preset",
    "seed",
    "loop",
    "no_face",
    "crf",
    "codec",
    "encoder",
    "pixel_format",
    "device",
    "threads",
    "frame_memory_mb",
    "triton_url",
)


@dataclass(frozen=True)
class TuneSettings:
    """What to tune, on what, for how long.

    base: settings that are left alone. fixed: fields that are not searched. engines: to choose from. n_trials: of the
    whole study, earlier calls' included; None for no bound. limit_s: of this call's search. duration_s: use this much
    of the speech. repeats: turns of the finalists.
    """

    model: str
    video: Path
    speech: Path
    output: Path
    floors: tuple[Floor, ...]
    base: Candidate
    fixed: Collection[str] = ()
    engines: tuple[EngineName, ...] = ("torch",)
    n_trials: int | None = 40
    limit_s: float | None = None
    duration_s: float | None = None
    repeats: int = 3

    def __post_init__(self) -> None:
        if self.n_trials is None and self.limit_s is None:
            raise SettingsError("a tuning without an end", fix="give --trials or --minutes")
        if self.n_trials is not None and self.n_trials < 1:
            raise SettingsError(f"trials = {self.n_trials}: nothing to try", fix="use at least 1", setting="trials")
        check_run_lengths(self.duration_s, self.repeats, [self.base.sync])


@dataclass(frozen=True)
class Tuned:
    """What a tuning found. named: the trial that the preset holds. speedup: over the published behaviour, in turns."""

    preset: PresetFile
    named: Trial
    speedup: float
    trials: tuple[Trial, ...]
    exact: Trial
    measures: tuple[str, ...]

    def text(self) -> str:
        """Return the Pareto front and what was named, for a person."""
        return f"{table(self.trials, self.exact, self.measures)}\nnamed: trial {self.named.number}, {self.speedup:.2f}"


def check_outputs(output: Path, *, inputs: Sequence[Path], overwrite: bool) -> None:
    """Check, before any work, that preset, table and plot can be made. Raises OutputError, SettingsError."""
    if output.suffix != ".toml":
        raise SettingsError(f"output {output}: not a .toml", fix="give -o NAME.toml")
    for path in (output, output.with_suffix(".csv"), output.with_suffix(".png")):
        check_beside(path, inputs=inputs, overwrite=overwrite)
    load_optuna()
    figure_class()


def tune(settings: TuneSettings, report: Callable[[str], None]) -> Tuned:
    """Search, name the fastest settings above the floors and write the preset, its table and its plot.

    The study lies beside the preset, in its .db: a call with the same model, clip, floors and choices goes on with it.
    report: receives lines of progress. Raises LipstreamError.
    """
    config, _ = read_config(settings.model)
    device = torch_device(settings.base.runtime)
    space = search_space(
        config,
        settings.base,
        device,
        fixed=settings.fixed,
        engines=settings.engines,
        vaes=("own", "taesd-decoder", "taesd") if has_taesd(config) else ("own",),
    )
    exact = space.candidate(space.exact())
    study = Study(settings.output.with_suffix(".db"), _key(settings, space), space, settings.floors)
    with (
        tempfile.TemporaryDirectory(prefix="lipstream-tune-") as folder,
        Runner(
            settings.model,
            exact,
            settings.floors,
            Path(folder),
            settings.video,
            settings.speech,
            settings.duration_s,
            _PART_S,
        ) as runner,
    ):
        trials = study.search(runner, settings.n_trials, settings.limit_s, report)
        if not any(trial.seconds_per_frame and space.candidate(trial.choice) == exact for trial in trials):
            raise SettingsError("the published behaviour has not been tried yet", fix="give more --trials or --minutes")
        named, seconds = _finalists(trials, space, runner, settings.repeats, report)
        label, n_frames = runner.label(), runner.n_frames
    first = next(trial for trial in trials if trial.seconds_per_frame and space.candidate(trial.choice) == exact)
    tuned = Tuned(
        preset=_preset(settings, space.candidate(named.choice), named, seconds, n_frames),
        named=named,
        speedup=seconds["exact"] / seconds["named"],
        trials=tuple(trials),
        exact=first,
        measures=tuple(floor.measure for floor in settings.floors),
    )
    _write(settings, tuned, f"{config.name}, {label}\n{machine.machine(device)}")
    return tuned


def _finalists(
    trials: Sequence[Trial], space: Space, runner: Runner, repeats: int, report: Callable[[str], None]
) -> tuple[Trial, dict[str, float]]:
    """Measure the fastest trials above the floors again, in turns with the published behaviour.

    Returns the one with the lowest median, and seconds per frame of it ("named") and of the published ("exact").
    """
    kept = sorted((trial for trial in trials if trial.feasible), key=lambda trial: trial.seconds_per_frame or 0)
    finalists: list[tuple[Trial, Candidate]] = []
    for trial in kept:
        candidate = space.candidate(trial.choice)
        if candidate not in [other for _, other in finalists]:
            finalists.append((trial, candidate))
    if not finalists:
        raise SettingsError(
            "no trial keeps the floors, not even the published behaviour", fix="lower the floors, or look at the table"
        )
    exact = space.candidate(space.exact())
    candidates = list(dict.fromkeys([exact, *(candidate for _, candidate in finalists[:_FINALISTS])]))
    seconds: dict[Candidate, list[float]] = {candidate: [] for candidate in candidates}
    for candidate in candidates:
        runner.seconds(candidate)  # warms up
    for turn, candidate in in_turns(candidates, repeats):
        seconds[candidate].append(runner.seconds(candidate))
        report(f"turn {turn} of {repeats}: {1 / seconds[candidate][-1]:.2f} frames/s")
    medians = {candidate: statistics.median(found) for candidate, found in seconds.items()}
    best = min((pair for pair in finalists if pair[1] in medians), key=lambda pair: medians[pair[1]])
    return best[0], {"exact": medians[exact], "named": medians[best[1]]}


def _preset(
    settings: TuneSettings, candidate: Candidate, named: Trial, seconds: dict[str, float], n_frames: int
) -> PresetFile:
    measured: dict[str, Any] = {
        "clip": settings.video.name,
        "frames": n_frames,
        "machine": machine.machine(torch_device(candidate.runtime)),
        "date": date.today().isoformat(),
        "floors": [str(floor) for floor in settings.floors],
        "frames_per_s": round(1 / seconds["named"], 3),
        "times_as_fast": round(seconds["exact"] / seconds["named"], 3),
        "trial": named.number,
    }
    measured |= {name: round(value, 5) for name, value in named.values.items() if value is not None}
    return PresetFile(
        model=settings.model,
        sync=_decided(candidate.sync, SyncSettings()),
        runtime=_decided(candidate.runtime, RuntimeSettings()),
        measured={name: value for name, value in measured.items() if value not in (float("inf"), float("-inf"))},
    )


def _decided(record: SyncSettings | RuntimeSettings, default: SyncSettings | RuntimeSettings) -> dict[str, Any]:
    """Return the fields that a preset decides: those that differ from the defaults."""
    usual = default.to_dict()
    return {
        name: value
        for name, value in record.to_dict().items()
        if name not in _NOT_OF_A_PRESET and value is not None and value != usual[name]
    }


def _key(settings: TuneSettings, space: Space) -> str:
    """Return what a study is of, as a hash: of all that its trials' numbers depend on."""
    base = [replace(settings.base.sync).to_dict(), settings.base.runtime.to_dict()]
    what = {
        "model": settings.model,
        "files": [[str(path.resolve()), path.stat().st_size] for path in (settings.video, settings.speech)],
        "floors": [str(floor) for floor in settings.floors],
        "base": base,
        "axes": [[axis.name, list(axis.values)] for axis in space.axes],
        "duration_s": settings.duration_s,
        "machine": machine.machine(torch_device(settings.base.runtime)),
    }
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()


def _write(settings: TuneSettings, tuned: Tuned, title: str) -> None:
    floor = settings.floors[0]
    bound = None if floor.is_relative else floor.value
    write_whole(settings.output.with_suffix(".csv"), to_csv(tuned.trials))
    picture = plot(tuned.trials, tuned.exact, tuned.named, floor.measure, bound, title)
    write_whole(settings.output.with_suffix(".png"), picture)
    write_whole(settings.output, tuned.preset.to_toml())
