"""The rows of results.csv, and timing that waits for the device."""

from __future__ import annotations

import csv
import os
import platform
import time
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path

import torch
from torch import Tensor

from lipstream import __version__

RESULTS = Path(__file__).with_name("results.csv")
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def row(
    benchmark: str, model: str, settings: str, frames: int, wall_s: float, peak_mb: float | None, device: torch.device
) -> dict[str, object]:
    """A row in the order of the file's columns. peak_mb: None where it was not measured."""
    return {
        "date": date.today().isoformat(),
        "benchmark": benchmark,
        "model": model,
        "settings": settings,
        "frames": frames,
        "wall_s": round(wall_s, 4),
        "frames_per_s": round(frames / wall_s, 2),
        "peak_mb": "" if peak_mb is None else round(peak_mb),
        "machine": machine(device),
        "versions": f"lipstream {__version__}, torch {torch.__version__}, Python {platform.python_version()}",
    }


def add_row(row: Mapping[str, object], path: Path = RESULTS) -> None:
    """Append a row to a file of rows, with the names of the columns in a new one."""
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, row.keys(), lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerow(row)


def machine(device: torch.device) -> str:
    """Say what a row was measured on: the processor, its vector instructions, its cores, and the GPU."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else "no GPU"
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} cores, {gpu}"


def resident_mb(pid: int | str = "self") -> float:
    """Memory of a process, MB; 0 once it has ended (Linux)."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def settle(device: torch.device) -> None:
    """Wait until the device has done all it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed_s(work: Callable[[], object], device: torch.device) -> float:
    """Seconds that `work` takes, the device's part included."""
    settle(device)
    begun_s = time.perf_counter()
    work()
    settle(device)
    return time.perf_counter() - begun_s


def by_turns(
    ways: Mapping[str, Callable[[], Tensor]], rounds: int, device: torch.device
) -> tuple[dict[str, Tensor], dict[str, list[float]], dict[str, float | None]]:
    """The result of each way, its seconds and its peak memory on CUDA, MB. Every other round is in reverse order."""
    results = {way: work().cpu() for way, work in ways.items()}  # also warms up, and compiles
    times: dict[str, list[float]] = {way: [] for way in ways}
    peaks: dict[str, float | None] = dict.fromkeys(ways)
    for round_ in range(rounds):
        for way, work in list(ways.items())[:: 1 if round_ % 2 == 0 else -1]:
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            times[way].append(timed_s(work, device))
            if device.type == "cuda":
                peaks[way] = torch.cuda.max_memory_allocated(device) / 2**20
    return results, times, peaks
