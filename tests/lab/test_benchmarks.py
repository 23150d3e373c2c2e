"""The scripts under benchmarks/ run, at a small size and on a CPU; nothing here is timed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SMALL = ("--no-row", "--rounds", "1")
NARROW = ("--narrow", "--device", "cpu", "--steps", "2", "--resolution", "256")

# Ours, called as the published U-Net is: (1, channels, frames, height, width), a batch of two where it is guided.
STAND_IN = """
from types import SimpleNamespace

import torch
from latentsync.utils.util import zero_rank_log
from lipstream.models.unet import UNet
from lipstream.models.unet_config import UNetConfig


class UNet3DConditionModel(UNet):
    def __init__(self, **words):
        super().__init__(UNetConfig.from_dict(words))

    dtype = property(lambda self: self.conv_in.weight.dtype)

    def forward(self, sample, timestep, encoder_hidden_states):
        frames = sample.shape[2]
        noise = super().forward(sample.transpose(1, 2).flatten(0, 1), timestep, encoder_hidden_states, frames)
        return SimpleNamespace(sample=noise.unflatten(0, (-1, frames)).transpose(1, 2))
"""


def call(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """A script's end; benchmarks/results.csv stays as it is."""
    rows = (ROOT / "benchmarks" / "results.csv").read_bytes()
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *words, *SMALL], cwd=ROOT, env=env, capture_output=True, encoding="utf-8")
    assert (ROOT / "benchmarks" / "results.csv").read_bytes() == rows
    return done


def run(*words: str | Path) -> str:
    """What a script prints that ends well."""
    done = call(*words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_full_size_model_is_measured_whole_and_its_unet_alone(tmp_path: Path) -> None:
    printed = run("-m", "benchmarks.gpu.full_size", tmp_path, *NARROW, "--seconds", "1", "--batch", "2")
    assert "full size 64 px, narrow: " in printed
    assert "frames/s end to end" in printed
    assert all(f"  {stage} " in printed for stage in ("detect", "align", "encode", "denoise", "composite", "write"))
    assert "for the U-Net alone" in printed
    assert (tmp_path / "256-narrow" / "lipstream.json").is_file()


@pytest.fixture(params=["stand-in", "LIPSTREAM_PUBLISHED"])
def checkout(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A checkout of the published code, and what stands in for it where there is none."""
    if request.param != "stand-in":
        named = os.environ.get(request.param)
        return Path(named) if named else pytest.skip(f"{request.param} names no checkout of the published code")
    file = tmp_path / "stand-in" / "latentsync" / "models" / "unet.py"
    file.parent.mkdir(parents=True)
    file.write_text(STAND_IN)
    return tmp_path / "stand-in"


def test_the_published_code_runs_beside_ours_to_the_same_latents(tmp_path: Path, checkout: Path) -> None:
    words = ("--published", checkout, *NARROW, "--windows", "2", "--batch", "2")
    printed = run("-m", "benchmarks.gpu.published", tmp_path, *words)
    for part in ("sampling", "model part"):
        lines = [line for line in printed.splitlines() if line.startswith(f"published code, 64 px, narrow, {part}: ")]
        assert [way in line for way, line in zip(("published; ", "ours; "), lines, strict=True)] == [True, True]
        assert "times as fast" in lines[1]


@pytest.mark.skipif("LIPSTREAM_PUBLISHED" not in os.environ, reason="names no checkout of the published code")
def test_the_published_pipeline_runs_beside_sync(tmp_path: Path) -> None:
    checkout = os.environ["LIPSTREAM_PUBLISHED"]
    printed = run(
        "-m", "benchmarks.published_sync", tmp_path, "--published", checkout, "--frames", "16", "--steps", "1"
    )
    published, ours = printed.splitlines()
    assert "published; " in published
    assert "ours; " in ours


@pytest.mark.parametrize("script", ["gpu.published", "published_sync"])
def test_a_folder_that_is_not_the_published_code_is_named(tmp_path: Path, script: str) -> None:
    done = call("-m", f"benchmarks.{script}", tmp_path / "models", "--published", tmp_path)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(f"{tmp_path}: not a checkout of the published code")
    assert "git clone" in done.stderr
    assert not (tmp_path / "models").exists()


def test_what_runs_on_a_gpu_machine_is_a_script() -> None:
    subprocess.run(["bash", "-n", ROOT / "benchmarks" / "gpu" / "measure.sh"], check=True)


def test_a_saving_in_denoising_changes_nothing() -> None:
    printed = run("-m", "benchmarks.denoise_savings", "--steps", "1", "--windows", "1", "--only", "audio keys")
    assert printed.count("greatest difference") == 2


def test_own_layers_are_measured_beside_what_they_replace() -> None:
    printed = run("-m", "benchmarks.layers")
    assert all(
        f"  {way}; a window" in printed for way in ("as it is", "linear layers as torch's", "group norms strided")
    )
    assert all(float(apart) < 1e-4 for apart in re.findall(r"(\S+) apart", printed))


def test_faces_are_cut_out_and_pasted_back_as_on_whole_frames() -> None:
    printed = run("-m", "benchmarks.face_geometry", "--frames", "2")
    assert "ours, all at once, cpu" in printed
    decibels = [float(line.split()[-2]) for line in printed.splitlines() if "PSNR" in line]
    assert len(decibels) == 2
    assert min(decibels) > 60


def test_faces_are_found_where_the_library_finds_them() -> None:
    printed = run("-m", "benchmarks.face_detection", "--frames", "4", "--detect-every", "2")
    assert printed.count("4 of 4 with a face") == 2


def test_presets_of_the_encoder_are_compared() -> None:
    printed = run(
        "-m", "benchmarks.encoding", "--video", ROOT / "src/lipstream/bundled/sample/astronaut.mp4", "--frames", "5"
    )
    sizes = {line.split("x264 ")[1].split(",")[0]: line for line in printed.splitlines()}
    assert list(sizes) == ["medium", "fast", "faster"]
    assert all("PSNR 4" in line for line in sizes.values())
