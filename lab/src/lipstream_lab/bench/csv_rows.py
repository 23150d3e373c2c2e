"""The rows of a benchmark and the CSV file that they are added to."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from lipstream.errors import OutputError


@dataclass(frozen=True)
class Row:
    """What one setting did; the columns are explained in docs/measuring.md. None where it cannot be measured."""

    date: str
    stage: str
    input: str
    setting: str
    words: str
    model: str
    device: str
    precision: str
    frames: int
    repeats: int
    seconds: float
    seconds_min: float
    seconds_max: float
    speedup: float | None
    frames_per_s: float
    real_time_factor: float
    cpu_s: float
    gflop: float | None
    model_gflop_per_s: float | None
    matrix_gflop_per_s: float | None
    matrix_share: float | None
    peak_host_mb: float | None
    peak_device_mb: float | None
    psnr_db: float | None
    ssim: float | None
    landmark_distance: float | None
    opening_correlation: float | None
    flicker: float | None
    reference_flicker: float | None
    frames_without_face: int | None
    machine: str
    versions: str
    commit: str


def check_csv(path: Path) -> None:
    """Refuse, before anything is run, a file that rows cannot be added to. Raises OutputError."""
    if not path.parent.is_dir():
        raise OutputError(f"{path}: its folder does not exist; create {path.parent} first")
    try:
        if path.exists() and path.stat().st_size and path.read_text("utf-8").splitlines()[0].split(",") != _COLUMNS:
            raise OutputError(f"{path}: its columns are others; name another file with -o")
    except (OSError, UnicodeDecodeError) as error:
        raise OutputError(f"{path}: cannot be added to ({error}); name another file with -o") from error


def add_to_csv(path: Path, rows: Sequence[Row]) -> None:
    """Add the rows to a CSV file, with a heading where it is new. Raises OutputError."""
    check_csv(path)
    try:
        is_new = not path.exists() or path.stat().st_size == 0
        with path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, _COLUMNS)
            if is_new:
                writer.writeheader()
            writer.writerows(asdict(row) for row in rows)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror}); name another file with -o") from error


_COLUMNS = [column.name for column in fields(Row)]
