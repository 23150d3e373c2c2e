"""The real command line as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def command(*words: object) -> list[str]:
    return [sys.executable, "-W", "error::UserWarning:lipstream", "-m", "lipstream", *map(str, words)]


def run(*words: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    # No hub and no InsightFace files in reach: what is bundled has to do. UTF-8 is named on both sides, since a library
    # loaded by another test may have changed the locale of this process.
    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "PYTHONUTF8": "1"}
    return subprocess.run(
        command(*words), capture_output=True, encoding="utf-8", timeout=240, cwd=cwd, env=environment, check=False
    )


def error_line(done: subprocess.CompletedProcess[str], exit_code: int) -> str:
    """Return the one line that says what went wrong: the last on standard error; what comes before it is progress."""
    assert done.returncode == exit_code, (done.returncode, done.stderr)
    assert done.stdout == ""
    lines = done.stderr.strip().splitlines()
    assert lines[-1].startswith("lipstream: error: ")
    assert all(line.startswith("lipstream: ") and "error" not in line for line in lines[:-1]), lines
    return lines[-1]
