"""Sweeps: what a TOML file means, which settings are worth having, and a small one from end to end."""

from __future__ import annotations

import argparse
import csv
import itertools
from pathlib import Path

import av
import pytest

from helpers.cli import error_line, run
from lipstream import InputError, SettingsError
from lipstream.tune.report import pareto_front
from lipstream_lab.bench import bench
from lipstream_lab.bench.csv_rows import Row
from lipstream_lab.bench.sweep import read_sweep
from lipstream_lab.cli import add_bench_arguments, parse_settings

SWEEP = """
baseline = "steps=20 guidance-scale=1.5"

[[grid]]
name = "steps {steps} seeds {detect_every}"
steps = [4, 6]
detect_every = [1, 2]
detector = "mediapipe"

[[setting]]
name = "quick, compiled"
preset = "fast"
guidance_scale = 1.0
compile = true
"""


def arguments(*words: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_bench_arguments(parser)
    return parser.parse_args([str(word) for word in words])


def written(folder: Path, text: str) -> Path:
    path = folder / "sweep.toml"
    path.write_text(text)
    return path


def test_a_sweep_spans_its_grids_and_lists_its_settings(tmp_path: Path) -> None:
    assert read_sweep(written(tmp_path, SWEEP)) == [
        ("baseline", ["steps=20", "guidance-scale=1.5"]),
        ("steps 4 seeds 1", ["steps=4", "detect_every=1", "detector=mediapipe"]),
        ("steps 4 seeds 2", ["steps=4", "detect_every=2", "detector=mediapipe"]),
        ("steps 6 seeds 1", ["steps=6", "detect_every=1", "detector=mediapipe"]),
        ("steps 6 seeds 2", ["steps=6", "detect_every=2", "detector=mediapipe"]),
        ("quick, compiled", ["preset=fast", "guidance_scale=1.0", "compile"]),
    ]
    settings = parse_settings(arguments("--sweep", tmp_path / "sweep.toml", "--threads", "3"))
    assert [setting.sync.num_inference_steps for setting in settings] == [20, 4, 4, 6, 6, None]
    assert {setting.runtime.threads for setting in settings} == {3}
    assert settings[0].sync.guidance_scale == 1.5
    assert [setting.runtime.compile for setting in settings] == [False] * 5 + [True]
    assert settings[-1].text == "preset=fast guidance_scale=1.0 compile"


def test_a_grid_without_a_name_is_called_by_its_options(tmp_path: Path) -> None:
    named = read_sweep(written(tmp_path, "[[grid]]\nsteps = [1, 2]\npreset = 'fast'\n"))
    assert [name for name, _ in named] == ["baseline", "steps 1 preset fast", "steps 2 preset fast"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("baseline = 3", "give options in quotes"),
        ("settings = []", "'settings'. Fix: use baseline, grid, setting"),
        ("grid = 3", r"begin each with \[\[grid\]\]"),
        ("[grid]\nsteps = [1]", r"begin each with \[\[grid\]\]"),
        ("[[grid]]\nname = 'x'", "has no options"),
        ("[[grid]]\nname = 'x {step}'\nsteps = [1]", "'step'"),
        ("[[grid]]\nname = 'x {'\nsteps = [1]", "grid's options in braces"),
        ("[[grid]]\nname = 'x'\nsteps = [1, 2]", "two settings have this name"),
        ("[[setting]]\nsteps = 1", "a name in quotes"),
        ("[[setting]]\nname = 3", "a name in quotes"),
        ("[[setting]]\nname = 'x'\nsteps = [1, 2]", "use a string, a number or true"),
        ("[[setting]]\nname = 'x'\ncompile = false", "remove compile"),
        ("[[setting]]\nname = 'x'\nstepz = 1", "'x': unrecognized arguments: stepz=1"),
        ("[[setting]]\nname = 'x'\nsteps = 'two'", "invalid int value"),
        ("[[setting]]\nname = 'x'\nseed = 3", "seed differs"),
        ("baseline = 'steps=0'", "--steps 0"),
    ],
)
def test_sweeps_that_make_no_sense(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=message):
        parse_settings(arguments("--sweep", written(tmp_path, text)))


def test_sweeps_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not valid TOML"):
        read_sweep(written(tmp_path, "a = "))
    with pytest.raises(InputError, match=r"no\.toml"):
        read_sweep(tmp_path / "no.toml")
    with pytest.raises(SettingsError, match="not both"):
        parse_settings(arguments("--sweep", written(tmp_path, ""), "--setting", "x: steps=1"))


def test_the_front_is_what_nothing_beats() -> None:
    assert pareto_front([(1, 1.0), (2, 0.9), (1.5, 0.8), (4, 0.5), (3, 0.5), (2, 0.7)]) == [0, 1, 3]
    assert pareto_front([(2, 0.9), (2, 0.9)]) == [0]
    assert pareto_front([(1, 0.9), (1, 1.0), (2, 1.0)]) == [2]
    assert pareto_front([(1, 1.0)]) == [0]


def test_the_benchmarks_sweeps_are_sound() -> None:
    folder = Path(__file__).parents[2] / "benchmarks"
    settings = parse_settings(arguments("--sweep", folder / "sweep.toml"))
    assert settings[0].name == "baseline"
    assert len(settings) > 5
    assert len(read_sweep(folder / "sweep_many_steps.toml")) > 20


def test_a_sweep_from_end_to_end(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "[[grid]]\nname='guidance {guidance_scale}'\nguidance_scale=[1.0, 1.2]\n"
        "[[setting]]\nname='half'\nprecision='bf16'\n"
        "[[setting]]\nname='elsewhere'\nmodel='no-such'\n",
    )
    words = ("bench", "--sweep", path, "--seconds", "0.2", "--repeats", "1", "-o", tmp_path / "out.csv")
    done = run(*words)
    assert done.returncode == 0, done.stderr
    assert "elsewhere: skipped, no-such" in done.stderr
    # The model in bf16 is another, so its row comes by itself, in turns with the baseline.
    turns = [line.split(":")[1].rpartition(" ")[0] for line in done.stderr.splitlines() if line.startswith("turn")]
    assert [turn.rpartition(" ")[0].strip() for turn in turns] == [
        "baseline",
        "guidance 1.0",
        "guidance 1.2",
        "half",
        "baseline",
    ]
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["setting"] for row in rows] == ["baseline", "guidance 1.0", "guidance 1.2", "half"]
    assert rows[0]["ssim"] == ""
    for row in rows[1:]:
        assert 0.3 < float(row["ssim"]) <= 1
        assert 0.1 < float(row["speedup"]) < 10
    with av.open(str(tmp_path / "out.png")) as container:
        assert next(container.decode(video=0)).width >= 800
    assert "--overwrite" in error_line(run(*words), 6)


def test_what_was_measured_before_an_interrupt_is_kept() -> None:
    settings = parse_settings(arguments("--setting", "one: guidance-scale=1.0", "--setting", "two: guidance-scale=1.2"))
    turns = itertools.count(1)

    def stop(line: str) -> None:
        if line.startswith("turn") and next(turns) == 3:
            raise KeyboardInterrupt

    kept: list[Row] = []
    with pytest.raises(KeyboardInterrupt):
        bench.run(bench.BenchSettings(settings, duration_s=0.2, repeats=5), stop, kept.extend)
    assert [(row.setting, row.repeats) for row in kept] == [("one", 1), ("two", 2)]
