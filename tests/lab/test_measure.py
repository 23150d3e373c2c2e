"""Profiles and benchmarks: the real command line on a second of the bundled sample, and what its files say."""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import math
import pstats
import sys
import threading
import time
import wave
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import pytest
import torch

from helpers.cli import error_line, run
from lipstream import SettingsError
from lipstream.bundled import sample
from lipstream.models.load import read_config
from lipstream.models.unet import UNet
from lipstream.profiling.call_profile import CallProfile
from lipstream.profiling.profile import _call_profile
from lipstream.profiling.trace import Trace
from lipstream_lab.bench import bench, flops
from lipstream_lab.bench.cases import StageName
from lipstream_lab.bench.csv_rows import Row, add_to_csv
from lipstream_lab.cli import add_bench_arguments, parse_settings, run_bench

N_FRAMES = 20


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of `lipstream profile` of 0.8 s of the sample."""
    folder = tmp_path_factory.mktemp("profile")
    with wave.open(str(sample.SPEECH)) as source, wave.open(str(folder / "speech.wav"), "wb") as cut:
        cut.setparams(source.getparams())
        cut.writeframes(source.readframes(round(N_FRAMES / 25 * source.getframerate())))
    done = run(
        *("profile", sample.VIDEO, folder / "speech.wav", "-o", folder / "out"),
        *("--detector", "mediapipe", "--threads", "2", "--layers", "--json"),
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads((folder / "out" / "stages.json").read_text())
    return folder / "out"


@pytest.fixture(scope="module")
def report(profile: Path) -> dict[str, Any]:
    words: dict[str, Any] = json.loads((profile / "stages.json").read_text())
    return words


@pytest.fixture(scope="module")
def events(profile: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((profile / "trace.json").read_text())["traceEvents"]
    return found


def test_a_profile_writes_its_files_once(profile: Path) -> None:
    assert sorted(path.name for path in profile.iterdir()) == [
        *(["profile.pstats"] if importlib.util.find_spec("yappi") else []),
        "stages.json",
        "stages.md",
        "synced.mp4",
        "trace.json",
    ]
    with av.open(str(profile / "synced.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == N_FRAMES
    again = run("profile", sample.VIDEO, sample.SPEECH, "-o", profile)
    assert "already exists" in error_line(again, 6)


def test_stages_count_their_own_time_once(report: dict[str, Any], profile: Path) -> None:
    stages = {stage["name"]: stage for stage in report["stages"]}
    assert list(stages) == ["read", "detect", "align", "features", "encode", "denoise", "composite", "write"]
    assert {stage["frames"] for stage in stages.values()} == {N_FRAMES}
    assert [stages[name]["threads"] for name in stages] == [1, 2, 2, 1, 2, 2, 2, 1]
    for stage in stages.values():
        waits_s = stage["waiting_for_input_s"] + stage["waiting_for_room_s"]
        assert 0 < stage["seconds"] + waits_s <= stage["threads"] * report["wall_s"]
        assert 0 <= stage["cpu_s"] <= stage["seconds"] + 0.05
    # What shares threads: reading with the feeding of the face stages, encoding with denoising.
    shared = (stages["encode"], stages["denoise"])
    assert sum(stage["seconds"] for stage in shared) <= stages["denoise"]["threads"] * report["wall_s"]
    assert sum(stage["share"] for stage in stages.values()) == pytest.approx(1, abs=0.001)
    assert report["stages_cpu_s"] <= report["process_cpu_s"]
    rates = {name: stage["frames_per_s"] for name, stage in stages.items()}
    assert report["slowest"] == min(rates, key=rates.__getitem__)
    table = (profile / "stages.md").read_text()
    assert all(f" {name} |" in table for name in stages)
    assert f"slowest stage: {report['slowest']}" in table


def test_the_calls_of_every_thread_are_in_the_profile(profile: Path) -> None:
    pytest.importorskip("yappi")
    calls = Counter[str]()
    for (_, _, name), (_, count, *_) in pstats.Stats(str(profile / "profile.pstats")).stats.items():
        calls[name.rpartition(".")[2]] += count  # names are qualified by the class
    # Of the writing thread, of both face stages' and compositing's workers, and of the denoising thread.
    assert calls["write"] >= N_FRAMES
    assert calls["crop_faces"] == calls["paste_faces"] == N_FRAMES
    assert calls["detect_all"] == 1 + N_FRAMES  # the first frame is searched before the rest
    assert calls["_denoise"] == 2


def test_the_trace_has_a_track_a_thread_and_a_span_a_call(report: dict[str, Any], events: list[dict[str, Any]]) -> None:
    threads = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert 0 not in threads  # which viewers take for the idle thread
    expected = {"write", "detect-input", "denoise-input", "detect_0", "align_0", "denoise_0", "composite_0"}
    assert expected <= set(threads.values())
    spans = [e for e in events if e["ph"] == "X"]
    stages = [e for e in spans if e["cat"] == "stage"]
    assert Counter(e["name"] for e in stages) == {stage["name"]: stage["calls"] for stage in report["stages"]}
    painting = {threads[e["tid"]] for e in stages if e["name"] in ("encode", "denoise")}
    assert painting <= {"denoise_0", "denoise_1", "denoise_2", "denoise_3"}
    for track in threads:
        open_until: list[float] = []
        begun = 0.0
        for span in (e for e in spans if e["tid"] == track):
            assert span["ts"] >= begun >= 0
            assert span["dur"] >= 0
            begun, end = span["ts"], span["ts"] + span["dur"]
            while open_until and open_until[-1] <= begun + 0.01:
                open_until.pop()
            # Inside the span that is open, or after all of them.
            assert not open_until or end <= open_until[-1] + 0.01
            open_until.append(end)


def test_the_layers_lie_inside_denoising(events: list[dict[str, Any]]) -> None:
    layers = [e for e in events if e.get("cat") == "layer"]
    names = {e["name"] for e in layers}
    assert {"conv_out", "mid_block", "down_blocks.0.resnets.0", "up_blocks.2.attentions.0"} <= names
    assert len([e for e in layers if e["name"] == "mid_block"]) == 2
    denoising = [(e["tid"], e["ts"], e["ts"] + e["dur"]) for e in events if e["name"] == "denoise" and e["ph"] == "X"]
    for e in layers:
        assert any(e["tid"] == t and s <= e["ts"] and e["ts"] + e["dur"] <= end + 0.01 for t, s, end in denoising)


def test_hooks_are_gone_after_the_layers_were_recorded() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Sequential(torch.nn.Linear(2, 2)))
    trace = Trace()
    with trace.layers_of(network, torch.device("cpu")):
        network(torch.zeros(1, 2))
    assert [span.name for span in trace.spans] == ["0", "1", "unet"]
    network(torch.zeros(1, 2))
    assert len(trace.spans) == 3


def test_calls_of_concurrent_threads_are_kept_apart(tmp_path: Path) -> None:
    pytest.importorskip("yappi")

    def wait_long() -> None:
        time.sleep(0.05)

    def wait_short() -> None:
        for _ in range(10):
            time.sleep(0.001)

    profile = CallProfile()
    with profile.recording():
        threads = [threading.Thread(target=wait_long) for _ in range(3)]
        for thread in threads:
            thread.start()
        wait_short()
        for thread in threads:
            thread.join()
    threading.Thread(target=wait_short).start()  # not recorded
    profile.write(tmp_path / "calls.pstats")
    stats = pstats.Stats(str(tmp_path / "calls.pstats"))
    found = {function[2]: value for function, value in stats.stats.items() if function[0] == __file__}
    assert found["wait_long"][:2] == (3, 3)
    assert found["wait_long"][3] >= 0.15
    assert found["wait_short"][:2] == (1, 1)
    assert 0.01 <= found["wait_short"][3] < 0.15


def test_without_yappi_the_stages_are_still_profiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yappi", None)
    with pytest.raises(SettingsError, match=r"pip install"):
        CallProfile()
    assert _call_profile() is None


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_bench_arguments(parser)
    return parser.parse_args(words)


def test_settings_are_options_of_sync_on_top_of_the_shared_ones() -> None:
    both = ("--setting", "as it is:", "--setting", "quick: preset=fast steps=4 guidance_scale=1.0 batch=2")
    plain, quick = parse_settings(arguments("--model", "latentsync-1.5", "--threads", "3", "--batch", "4", *both))
    assert (plain.name, plain.text, plain.model) == ("as it is", "", "latentsync-1.5")
    assert (plain.sync.preset, plain.runtime.threads, plain.runtime.batch) == ("exact", 3, 4)
    assert plain.runtime.detector == "mediapipe"
    assert (quick.sync.preset, quick.sync.num_inference_steps, quick.sync.guidance_scale) == ("fast", 4, 1.0)
    assert (quick.model, quick.runtime.threads, quick.runtime.batch) == ("latentsync-1.5", 3, 2)
    (unnamed,) = parse_settings(arguments("--setting", "device=cuda:1"))
    assert (unnamed.name, unnamed.runtime.device) == ("device=cuda:1", "cuda:1")
    assert len(parse_settings(arguments())) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x: stepz=1", "'x': unrecognized arguments: stepz=1"),
        ("x: steps=two", "invalid int value: 'two'"),
        ("x: steps=0", "'x': --steps 0"),
        ("x: preset=best", "invalid choice: 'best'"),
        ("x: seed=3", "seed differs"),
        ("x: loop=hold", "loop differs"),
        ("x: model='a", "'x': No closing quotation"),
        (": steps=1", "has no name"),
    ],
)
def test_settings_that_cannot_be_read(text: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        parse_settings(arguments("--setting", text))


def test_a_benchmark_compares_in_turns_and_adds_rows(tmp_path: Path) -> None:
    done = run(
        *("bench", "--seconds", "0.4", "--repeats", "2", "-o", tmp_path / "bench.csv"),
        *("--setting", "guided: guidance-scale=2.0", "--setting", "plain: guidance-scale=1.0"),
    )
    assert done.returncode == 0, done.stderr
    turns = [line for line in done.stderr.splitlines() if line.startswith("turn")]
    assert [line.split()[4] for line in turns] == ["guided", "plain", "plain", "guided"]
    assert "plain" in done.stdout
    with (tmp_path / "bench.csv").open(newline="") as file:
        guided, plain = csv.DictReader(file)
    for row in (guided, plain):
        assert (row["stage"], row["frames"], row["repeats"], row["model"]) == ("all", "10", "2", "tiny")
        seconds = float(row["seconds"])
        assert 0 < float(row["seconds_min"]) <= seconds <= float(row["seconds_max"])
        assert float(row["frames_per_s"]) == pytest.approx(10 / seconds, rel=0.01)
        assert float(row["real_time_factor"]) == pytest.approx(seconds / 0.4, rel=0.01)
        assert float(row["model_gflop_per_s"]) == pytest.approx(float(row["gflop"]) / seconds, rel=0.01)
        assert float(row["matrix_share"]) > 0  # of a rate measured at another moment
        assert row["peak_host_mb"] == "" or float(row["peak_host_mb"]) > 100
        assert "cores" in row["machine"]
        assert f"torch {torch.__version__}" in row["versions"]
        assert set(row) >= {"commit", "peak_device_mb"}
    assert float(guided["gflop"]) > float(plain["gflop"]) > 0
    assert guided["speedup"] == "1.0"
    assert float(plain["speedup"]) == pytest.approx(float(guided["seconds"]) / float(plain["seconds"]), rel=0.01)
    assert guided["psnr_db"] == guided["ssim"] == guided["flicker"] == ""
    assert 15 < float(plain["psnr_db"]) < 60
    assert 0.5 < float(plain["ssim"]) < 1
    assert 0 < float(plain["landmark_distance"]) < 0.1
    assert 0 < float(plain["opening_correlation"]) <= 1
    assert 0 < float(plain["flicker"]) < 50
    assert 0 < float(plain["reference_flicker"]) < 50
    assert plain["frames_without_face"] == "0"


def test_a_file_with_other_columns_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "other.csv"
    path.write_text("a,b\n1,2\n")
    assert "columns" in error_line(run("bench", "-o", path), 6)
    assert path.read_text() == "a,b\n1,2\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("a.mp4", "--synthetic", "640x360"), "not both"),
        (("--synthetic", "large"), "such as 1920x1080"),
        (("--synthetic", "64x64"), "use 160 to 8192 px"),
        (("--repeats", "0"), "at least 1"),
        (("--seconds", "0"), r"at least 0\.04"),
        (("--loop", "trim"), "pingpong or hold"),
        (("--stage", "unet", "--setting", "a:", "--setting", "b: resolution=64"), "one resolution"),
        (("--stage", "decode"), "stage = 'decode': not a stage. Fix: use one of align, "),
    ],
)
def test_a_benchmark_that_makes_no_sense(words: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=message):
        run_bench(arguments(*words, "-o", str(tmp_path / "bench.csv")), lambda line: None)
    assert list(tmp_path.iterdir()) == []


STAGES: dict[StageName, bool] = {
    "align": True,
    "composite": True,
    "detect": False,
    "features": False,
    "unet": True,
    "vae": True,
}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_alone(stage: StageName, tmp_path: Path) -> None:
    (setting,) = parse_settings(arguments("--setting", "one: threads=1", "--device", "cpu"))
    settings = bench.BenchSettings(
        settings=(setting, replace(setting, name="two", runtime=replace(setting.runtime, threads=2))),
        stage=stage,
        synthetic=(480, 360),
        duration_s=0.2,
        repeats=1,
    )
    kept: list[Row] = []
    rows = bench.run(settings, lambda line: None, kept.extend)
    assert kept == rows
    assert [row.setting for row in rows] == ["one", "two"]
    assert {row.input for row in rows} == {"synthetic 480x360, 5 frames"}
    assert {row.frames for row in rows} == {5}
    # The number of threads never changes the result.
    assert rows[1].psnr_db == (math.inf if STAGES[stage] else None)
    assert rows[1].ssim == (1 if STAGES[stage] else None)
    assert rows[1].landmark_distance is None  # a stage makes no whole frames to find mouths in
    has_network = stage in ("features", "unet", "vae")
    assert all((row.gflop is not None) == has_network for row in rows)

    path = tmp_path / "rows.csv"
    add_to_csv(path, rows[:1])
    add_to_csv(path, rows[1:])
    with path.open(newline="") as file:
        assert [row["setting"] for row in csv.DictReader(file)] == ["one", "two"]


def test_the_published_unet_costs_what_was_counted_for_it() -> None:
    config, _ = read_config("latentsync-1.5")
    with torch.device("meta"):
        unet = UNet(config.unet)
        latents = torch.zeros(16, 13, 32, 32)
        audio = torch.zeros(16, 50, 384)
        flop = flops.counted(lambda: unet(latents, torch.zeros(()), audio, 16))
    assert flop == pytest.approx(4.05e12, rel=0.01)


def test_windows_are_counted_as_the_line_makes_them() -> None:
    assert flops.calls(50, 16, 2) == [(32, 16), (16, 16), (2, 2)]
    assert flops.calls(16, 16, 4) == [(16, 16)]
    assert flops.calls(3, 16, 1) == [(3, 3)]
