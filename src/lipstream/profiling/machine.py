"""Describe the machine, versions and commit of a measurement; measure peak memory and the matmul rate."""

from __future__ import annotations

import platform
import statistics
import subprocess
import time
from pathlib import Path

import av
import torch

from lipstream.runtime.cpu import cores
from lipstream.version import __version__

_MATMUL_S = 0.02
_LARGEST_MATMUL = 16384


def machine(device: torch.device) -> str:
    """Name the processor, its cores, torch's threads and, for a CUDA device, the GPU."""
    text = f"{_processor()}, {cores()} cores, {torch.get_num_threads()} torch threads"
    return f"{text}, {torch.cuda.get_device_name(device)}" if device.type == "cuda" else text


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def versions() -> str:
    """Return the versions of lipstream, Python, torch and PyAV."""
    versions = (f"lipstream {__version__}", f"Python {platform.python_version()}", f"torch {torch.__version__}")
    return ", ".join((*versions, f"PyAV {av.__version__}"))


def commit() -> str:
    """Return the short hash of the checkout, with a + if files differ from it; empty outside a checkout."""
    folder = Path(__file__).parent
    try:
        name = _git(folder, "rev-parse", "--short", "HEAD")
        return name + ("+" if _git(folder, "status", "--porcelain", "--", str(folder.parent)) else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def wait_for(device: torch.device) -> None:
    """Wait until the device has finished its queued work; returns at once for the CPU."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


class PeakMemory:
    """Peak memory in MB of the process and its CUDA device since the last `reset`; None if not measurable."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._can_reset = False

    def reset(self) -> None:
        """Start a new peak from the memory in use now."""
        try:
            Path("/proc/self/clear_refs").write_text("5")  # Linux: resets the peak resident set size
            self._can_reset = True
        except OSError:
            self._can_reset = False
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)

    def host_mb(self) -> float | None:
        """Return the peak resident set size of the process."""
        if not self._can_reset:
            return None
        lines = Path("/proc/self/status").read_text("utf-8").splitlines()
        return next((int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM")), None)

    def device_mb(self) -> float | None:
        """Return the peak of torch's allocations on the CUDA device."""
        return torch.cuda.max_memory_allocated(self._device) / 1e6 if self._device.type == "cuda" else None


class MatrixRate:
    """Measures the matmul rate of a device, an estimate of its attainable peak, with square matrices."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._device = device
        size = 256
        while True:
            self._matrix = torch.randn(size, size, device=device).to(dtype)
            self._seconds()  # warm-up at this size
            if self._seconds() > _MATMUL_S or size >= _LARGEST_MATMUL:
                break
            size *= 2

    def flop_per_s(self) -> float:
        """Return the rate measured now, the median of three."""
        return 2 * len(self._matrix) ** 3 / statistics.median(self._seconds() for _ in range(3))

    def _seconds(self) -> float:
        wait_for(self._device)
        begun_s = time.perf_counter()
        self._multiply()
        wait_for(self._device)
        return time.perf_counter() - begun_s

    def _multiply(self) -> None:
        if self._matrix.dtype == torch.float8_e4m3fn:
            one = torch.ones((), device=self._device)
            torch._scaled_mm(self._matrix, self._matrix.t(), scale_a=one, scale_b=one, out_dtype=torch.float16)
        else:
            torch.mm(self._matrix, self._matrix)
