"""Rows of a benchmark and the CSV file they are appended to."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from lipstream.errors import OutputError


@dataclass(frozen=True)
class Row:
    """Measurements of one setting; docs/measuring.md explains the columns. None if a value cannot be measured."""

    date: str
    stage: str
    input: str
    setting: str
    options: str
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
    sharpness: float | None
    reference_sharpness: float | None
    edge_step: float | None
    reference_edge_step: float | None
    frames_without_face: int | None
    machine: str
    versions: str
    commit: str


def check_csv(path: Path) -> None:
    """Check, before anything is run, that rows can be appended to the file. Raises OutputError."""
    if not path.parent.is_dir():
        raise OutputError("its folder does not exist", file=path, fix=f"create {path.parent}")
    try:
        if path.exists() and path.stat().st_size and path.read_text("utf-8").splitlines()[0].split(",") != _COLUMNS:
            raise OutputError("has different columns", file=path, fix="choose another file with -o")
    except (OSError, UnicodeDecodeError) as error:
        raise OutputError(f"cannot be appended to ({error})", file=path, fix="choose another file with -o") from error


def add_to_csv(path: Path, rows: Sequence[Row]) -> None:
    """Append the rows to a CSV file, with a header if it is new. Raises OutputError."""
    check_csv(path)
    try:
        is_new = not path.exists() or path.stat().st_size == 0
        with path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, _COLUMNS)
            if is_new:
                writer.writeheader()
            writer.writerows(asdict(row) for row in rows)
    except OSError as error:
        raise OutputError(
            f"cannot be written ({error.strerror})", file=path, fix="choose another file with -o"
        ) from error


_COLUMNS = [column.name for column in fields(Row)]
