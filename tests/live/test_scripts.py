"""The scripts that measure live sessions run, at a small size; nothing here is timed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("benchmarks.prepared", "--counted"), "latentsync-1.6, exact: 35.8 of 780.0 TFLOP for 16 frames, 4.6%"),
        (("benchmarks.live", "--minutes", "0.1", "--no-row"), "frames_per_s "),
        (("benchmarks.live", "--minutes", "0.1", "--no-row", "--source", "most"), "source most"),
        (
            ("benchmarks.live_windows", "--frames", "8", "--windows", "4", "--look-ahead", "0.1", "--no-rows"),
            "window 4, look_ahead_s whole",
        ),
    ],
    ids=["prepared", "live", "most", "windows"],
)
def test_a_script_prints_its_figures(words: tuple[str, ...], expected: str) -> None:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-m", *words], cwd=ROOT, env=env, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert expected in done.stdout
