"""Tuning: what is searched, what a floor means, that the search finds it, goes on and stops early."""

from __future__ import annotations

import argparse
import csv
import io
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from lipstream.cli import options
from lipstream.cli.sync import add_sync_arguments
from lipstream.errors import InputError, ModelError, SettingsError
from lipstream.models.locate import read_config
from lipstream.preset_file import PresetFile, read_preset
from lipstream.settings import RuntimeSettings, SyncSettings
from lipstream.tune.floors import parse_floors
from lipstream.tune.measure import Measured, Runner
from lipstream.tune.report import Trial, front, pareto_front, plot, table, to_csv
from lipstream.tune.space import Candidate, Space, search_space
from lipstream.tune.study import Study

pytest.importorskip("optuna")

CPU = torch.device("cpu")
BASE = Candidate(SyncSettings(), RuntimeSettings())


@pytest.fixture(autouse=True)
def processor_with_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lipstream.tune.space.computes_bf16", lambda device: True)


def space(model: str = "latentsync-1.5", **options: Any) -> Space:
    return search_space(read_config(model)[0], BASE, CPU, **options)


def names(found: Space) -> set[str]:
    return {axis.name for axis in found.axes}


def test_a_model_of_one_step_has_no_steps_to_choose() -> None:
    steps = {"num_inference_steps", "scheduler", "step_cache", "guidance_scale", "guidance_end"}
    assert steps <= names(space())
    assert not steps & names(space("tiny"))
    assert {"detect_every", "precision", "resolution"} <= names(space("tiny"))


def test_bf16_is_searched_where_the_processor_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "precision" in names(space())
    monkeypatch.setattr("lipstream.tune.space.computes_bf16", lambda device: False)
    assert "precision" not in names(space())


def test_what_is_fixed_or_not_there_is_not_searched() -> None:
    assert not {"precision", "guidance_end"} & names(space(fixed=["precision", "guidance_interval"]))
    assert "engine" not in names(space())
    assert "engine" in names(space(engines=("torch", "openvino")))
    assert "pruned" not in names(space())
    pruned = Candidate(BASE.sync, RuntimeSettings(pruned="list.json"))
    found = search_space(read_config("latentsync-1.5")[0], pruned, CPU)
    assert found.candidate(found.exact()).runtime.pruned is None


def test_choices_that_mean_the_same_run_are_equal_and_exact_is_exact() -> None:
    found = space()
    exact = found.candidate(found.exact())
    assert exact.sync.sampling(20, 1.5) == SyncSettings().sampling(20, 1.5)
    one_step = {**found.exact(), "num_inference_steps": 1}
    assert found.candidate({**one_step, "scheduler": "unipc", "step_cache": 3}) == found.candidate(one_step)
    unguided = {**found.exact(), "guidance_scale": 1.0}
    assert found.candidate({**unguided, "guidance_end": 0.25}) == found.candidate(unguided)


def test_exported_graphs_keep_the_size_and_precision_that_they_were_exported_in() -> None:
    found = space(engines=("torch", "openvino"))
    exported = {**found.exact(), "engine": "openvino"}
    assert found.candidate({**exported, "precision": "bf16", "resolution": 192}) == found.candidate(exported)
    assert found.candidate({**found.exact(), "precision": "bf16"}) != found.candidate(found.exact())


def test_a_search_begins_with_the_presets() -> None:
    found = space()
    exact, balanced, fast, quick = (found.candidate(choice) for choice in found.starts())
    for candidate, preset in ((exact, "exact"), (balanced, "balanced"), (fast, "fast")):
        named = SyncSettings(preset=preset)  # type: ignore[arg-type]
        assert candidate.sync.sampling(20, 1.5) == named.sampling(20, 1.5)
        assert candidate.sync.frames_per_detection() == named.frames_per_detection()
    assert quick == replace(fast, runtime=replace(fast.runtime, precision="bf16"))


def test_floors_bound_from_the_side_that_is_worse() -> None:
    ssim, landmarks, sync_d, confidence = parse_floors(
        ["ssim=0.95", "landmark_distance=0.01", "sync_d=+0.2", "sync_c=+0.5"]
    )
    exact = {"ssim": 1.0, "landmark_distance": 0.0, "sync_d": 7.0, "sync_c": 8.0}
    assert ssim.shortfall({"ssim": 0.96}, exact) < 0 < ssim.shortfall({"ssim": 0.94}, exact)
    assert landmarks.shortfall({"landmark_distance": 0.002}, exact) < 0
    assert landmarks.shortfall({"landmark_distance": 0.02}, exact) > 0
    assert sync_d.shortfall({"sync_d": 7.1}, exact) < 0 < sync_d.shortfall({"sync_d": 7.3}, exact)
    assert confidence.shortfall({"sync_c": 7.6}, exact) < 0 < confidence.shortfall({"sync_c": 7.4}, exact)
    assert ssim.shortfall({"ssim": None}, exact) == math.inf
    (psnr,) = parse_floors(["psnr_db=40"])
    assert psnr.shortfall({"psnr_db": math.inf}, exact) == -math.inf
    assert not ssim.surely_missed({"ssim": 0.93}, exact)
    assert ssim.surely_missed({"ssim": 0.90}, exact)


@pytest.mark.parametrize("text", ["ssim", "likeness=1", "ssim=high", "ssim=nan", "flicker_of=2", "sharpness=3", ""])
def test_what_is_no_floor_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="floor"):
        parse_floors([text])


class StandIn:
    """A clip on which every step costs a second, bf16 a tenth of one less, and likeness falls with few steps."""

    is_one_part = False

    def __init__(self) -> None:
        self.spans: list[str] = []

    def reference(self, span: str) -> Measured:
        return Measured(20.0, {"ssim": 1.0})

    def run(self, candidate: Candidate, span: str) -> Measured:
        self.spans.append(span)
        if candidate.runtime.quantize == "int8-dynamic":
            raise ModelError("it has none of these instructions")
        steps = candidate.sync.num_inference_steps or 20
        likeness = 1 - 0.2 / steps - (0.3 if candidate.sync.scheduler == "ddim" and steps < 15 else 0)
        return Measured(steps - (0.1 if candidate.runtime.precision == "bf16" else 0), {"ssim": likeness})


@pytest.fixture
def few() -> Space:
    whole = space(fixed=["resolution", "batch", "guidance_scale", "guidance_interval", "step_cache", "detect_every"])
    assert names(whole) == {"num_inference_steps", "scheduler", "precision", "quantize"}
    return whole


def search(path: Path, few: Space, n_trials: int, floor: str = "ssim=0.95") -> tuple[list[Trial], StandIn]:
    runner = StandIn()
    study = Study(path, f"a clip, {floor}", few, parse_floors([floor]))
    return study.search(cast(Runner, runner), n_trials, None, lambda message: None), runner


def test_the_search_finds_the_fastest_settings_above_the_floor_and_stops_bad_ones(tmp_path: Path, few: Space) -> None:
    trials, runner = search(tmp_path / "study.db", few, 40)
    assert [trial.number for trial in trials] == list(range(40))
    best = min((trial for trial in trials if trial.feasible), key=lambda trial: trial.seconds_per_frame or 0)
    # 0.2 / steps is 0.05 at four steps, which only the better solvers keep.
    assert best.choice["num_inference_steps"] == 4
    assert best.choice["scheduler"] != "ddim"
    assert best.choice["precision"] == "bf16"
    states = [trial.state for trial in trials]
    assert states.count("pruned") >= 1
    assert runner.spans.count("part") > runner.spans.count("whole")
    failed = [trial for trial in trials if trial.state == "failed"]
    assert all("instructions" in trial.reason for trial in failed)
    assert all(not trial.feasible and trial.seconds_per_frame is None for trial in failed)


def test_settings_that_were_tried_are_not_run_again(tmp_path: Path) -> None:
    every = ["num_inference_steps", "scheduler", "step_cache", "guidance_scale", "guidance_interval"]
    small = space(fixed=[*every, "batch", "resolution", "detect_every"])
    assert names(small) == {"precision", "quantize"}
    trials, runner = search(tmp_path / "study.db", small, 30)
    different = {small.candidate(trial.choice) for trial in trials}
    assert len(trials) == 30 > len(different)
    assert runner.spans.count("part") <= len(different)
    repeated = [trial for trial in trials if trial.reason.startswith("as trial ")]
    assert repeated
    assert not any(trial.feasible for trial in repeated)


def test_a_study_goes_on_where_it_stopped(tmp_path: Path, few: Space) -> None:
    path = tmp_path / "study.db"
    first, _ = search(path, few, 5)
    again, runner = search(path, few, 5)
    assert again == first
    assert runner.spans == []
    more, _ = search(path, few, 8)
    assert more[:5] == first
    assert len(more) == 8
    with pytest.raises(SettingsError, match="another model"):
        search(path, few, 5, floor="ssim=0.9")
    (tmp_path / "other.db").write_bytes(b"not a study" * 100)
    with pytest.raises(SettingsError, match="not a study"):
        search(tmp_path / "other.db", few, 1)


def test_an_interrupted_trial_is_counted_and_the_study_goes_on(tmp_path: Path, few: Space) -> None:
    class Interrupted(StandIn):
        def run(self, candidate: Candidate, span: str) -> Measured:
            raise KeyboardInterrupt

    path, floors = tmp_path / "study.db", parse_floors(["ssim=0.95"])
    with pytest.raises(KeyboardInterrupt):
        study = Study(path, "a clip, ssim=0.95", few, floors)
        study.search(cast(Runner, Interrupted()), 9, None, lambda message: None)
    trials, _ = search(path, few, 4)
    assert [trial.state for trial in trials][:2] == ["complete", "failed"]
    assert len(trials) == 4


def test_a_limit_of_time_ends_the_search(tmp_path: Path, few: Space) -> None:
    study = Study(tmp_path / "study.db", "key", few, parse_floors(["ssim=0.95"]))
    begun = time.monotonic()
    assert study.search(cast(Runner, StandIn()), None, 0.0, lambda message: None) == []
    assert time.monotonic() - begun < 60


def trial(number: int, seconds: float | None, ssim: float | None, feasible: bool = True) -> Trial:
    values = {} if ssim is None else {"ssim": ssim}
    state = "pruned" if seconds is None else "complete"
    return Trial(number, {"num_inference_steps": 20 - number}, state, "", seconds, values, feasible)


TRIALS = [trial(0, 4.0, 1.0), trial(1, 2.0, 0.99), trial(2, 3.0, 0.98), trial(3, 1.0, 0.9, False), trial(4, None, None)]


def test_the_front_is_what_nothing_beats() -> None:
    assert pareto_front([(1, 3), (2, 2), (1.5, 1), (2, 2)]) == [0, 1]
    assert [one.number for one in front(TRIALS, "ssim")] == [0, 1, 3]
    text = table(TRIALS, TRIALS[0], ["ssim"])
    assert "2.00" in text
    assert "num_inference_steps 19" in text
    assert "(below a floor)" in text.splitlines()[-1]
    rows = list(csv.DictReader(io.StringIO(to_csv(TRIALS).decode())))
    assert [row["state"] for row in rows] == ["complete"] * 4 + ["pruned"]
    assert rows[4]["seconds_per_frame"] == ""
    assert plot(TRIALS, TRIALS[0], TRIALS[1], "ssim", 0.95, "a title with $ and _").startswith(b"\x89PNG")


PRESET = PresetFile(
    "tiny",
    {"detect_every": 25, "guidance_interval": (0.0, 0.5), "scheduler": "dpm++2m"},
    {"precision": "bf16", "quantize": "int8"},
    {"frames_per_s": 12.5, "floors": ["ssim=0.95"], "clip": 'a "quoted" name.mp4'},
)


@pytest.fixture
def preset_path(tmp_path: Path) -> Path:
    path = tmp_path / "preset.toml"
    path.write_bytes(PRESET.to_toml())
    return path


def parsed(*words: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_sync_arguments(parser)
    args = parser.parse_args(["in.mp4", "speech.wav", *map(str, words)])
    options.apply_preset_file(args)
    return args


def test_a_preset_file_reads_back_as_written(preset_path: Path) -> None:
    read = read_preset(preset_path)
    assert read.model == "tiny"
    assert read.sync == {**PRESET.sync, "guidance_interval": [0.0, 0.5]}
    assert (read.runtime, read.measured) == (PRESET.runtime, PRESET.measured)


def test_sync_takes_a_preset_file_and_given_options_come_first(preset_path: Path) -> None:
    args = parsed("--preset", preset_path, "--quantize", "none", "--seed", "3")
    sync = options.settings_from(SyncSettings, args)
    runtime = options.settings_from(RuntimeSettings, args)
    assert args.model == "tiny"
    assert (sync.detect_every, sync.guidance_interval, sync.scheduler, sync.seed) == (25, (0.0, 0.5), "dpm++2m", 3)
    assert (runtime.precision, runtime.quantize) == ("bf16", "none")
    assert options.settings_from(SyncSettings, parsed("--preset", "fast")).preset == "fast"
    with pytest.raises(SettingsError, match="preset"):
        options.settings_from(SyncSettings, parsed("--preset", "quick"))


def test_a_preset_belongs_to_its_model(preset_path: Path) -> None:
    assert parsed("--preset", preset_path, "--model", "tiny").model == "tiny"
    with pytest.raises(SettingsError, match="for the model tiny"):
        parsed("--preset", preset_path, "--model", "latentsync-1.5")


def broken() -> Iterator[tuple[str, type[Exception], str]]:
    yield "format = 1\nmodel = ", InputError, "TOML"
    yield "format = 2\nmodel = 'tiny'", SettingsError, "format 2"
    yield "format = 1", SettingsError, "model"
    yield "format = 1\nmodel = 'tiny'\nsync = 3", SettingsError, "tables"
    yield "format = 1\nmodel = 'tiny'\n[sync]\nsteps = 3", SettingsError, "'steps' is not a field"
    yield "format = 1\nmodel = 'tiny'\n[sync]\nnum_inference_steps = 0", SettingsError, "num_inference_steps"
    yield "format = 1\nmodel = 'tiny'\n[other]", SettingsError, "unknown key"


@pytest.mark.parametrize(("text", "kind", "message"), list(broken()))
def test_what_is_no_preset_file_is_refused(tmp_path: Path, text: str, kind: type[Exception], message: str) -> None:
    path = tmp_path / "preset.toml"
    path.write_text(text)
    with pytest.raises(kind, match=message) as caught:
        read_preset(path)
    assert str(path) in str(caught.value)
    with pytest.raises(InputError):
        read_preset(tmp_path / "none.toml")
