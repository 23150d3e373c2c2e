"""`lipstream tune` and `sync --preset FILE.toml` as a user calls them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from helpers.cli import error_line, run
from lipstream.bundled import sample
from lipstream.preset_file import read_preset

pytest.importorskip("optuna")


def test_a_preset_is_found_written_and_taken(tmp_path: Path) -> None:
    output = tmp_path / "mine.toml"
    kept = ("--resolution", "128", "--batch", "1", "--quantize", "none", "--precision", "fp32")
    limits = ("--trials", "2", "--seconds", "0.16", "--repeats", "1", "--floor", "ssim=0.5")
    done = run("tune", sample.VIDEO, sample.SPEECH, *kept, *limits, "-o", output, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["model"], found["trials"]) == ("tiny", 2)
    assert found["measured"]["frames"] == 4
    assert found["sync"] == dict(read_preset(output).sync)
    assert output.with_suffix(".csv").read_text().count("\n") == 3
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")

    again = run("tune", sample.VIDEO, sample.SPEECH, *kept, *limits, "-o", output)
    assert "already exists" in error_line(again, 6)
    other = run("sync", sample.VIDEO, sample.SPEECH, "--preset", output, "--model", "latentsync-1.5")
    assert "for the model tiny" in error_line(other, 2)


def test_what_cannot_be_tuned_is_refused(tmp_path: Path) -> None:
    given = ("tune", sample.VIDEO, sample.SPEECH)
    assert "not a measure" in error_line(run(*given, "--floor", "beauty=1"), 2)
    assert "not a .toml" in error_line(run(*given, "-o", tmp_path / "preset.json"), 2)
