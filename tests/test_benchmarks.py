"""The scripts under benchmarks/ run, at a small size and on a CPU; nothing here is timed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
SMALL = ("--no-row", "--rounds", "1")


def run(*words: str | Path) -> str:
    """What a script prints; benchmarks/results.csv stays as it is."""
    rows = (ROOT / "benchmarks" / "results.csv").read_bytes()
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *words, *SMALL], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (ROOT / "benchmarks" / "results.csv").read_bytes() == rows
    return done.stdout


def test_the_full_size_model_is_measured_whole_and_its_unet_alone(tmp_path: Path) -> None:
    words = ("--narrow", "--device", "cpu", "--seconds", "1", "--steps", "2", "--resolution", "256", "--batch", "2")
    told = run("-m", "benchmarks.gpu.full_size", tmp_path, *words)
    assert "full size 64 px, narrow: " in told
    assert "frames/s end to end" in told
    assert all(f"  {stage} " in told for stage in ("detect", "align", "encode", "denoise", "composite", "write"))
    assert "for the U-Net alone" in told
    assert (tmp_path / "256-narrow" / "lipstream.json").is_file()


def test_a_saving_in_denoising_changes_nothing() -> None:
    told = run("-m", "benchmarks.denoise_savings", "--steps", "1", "--windows", "1", "--only", "audio keys")
    assert told.count("greatest difference") == 2


def test_faces_are_cut_out_and_pasted_back_as_on_whole_frames() -> None:
    told = run("benchmarks/face_geometry.py", "--frames", "2")
    assert "ours, all at once, cpu" in told
    decibels = [float(line.split()[-2]) for line in told.splitlines() if "PSNR" in line]
    assert len(decibels) == 2
    assert min(decibels) > 60


def test_faces_are_found_where_the_library_finds_them() -> None:
    told = run("benchmarks/face_detection.py", "--frames", "4", "--search-every", "2")
    assert told.count("4 of 4 with a face") == 2
