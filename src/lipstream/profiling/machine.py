"""What numbers were measured on: the machine, the versions, the commit; peak memory and the rate of a plain matmul."""

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
    """The processor, its cores, torch's threads and, for a CUDA device, the GPU."""
    words = f"{_processor()}, {cores()} cores, {torch.get_num_threads()} torch threads"
    return f"{words}, {torch.cuda.get_device_name(device)}" if device.type == "cuda" else words


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def versions() -> str:
    """lipstream's own version and those of what it computes with."""
    words = f"lipstream {__version__}, Python {platform.python_version()}, torch {torch.__version__}"
    return f"{words}, PyAV {av.__version__}"


def commit() -> str:
    """The commit that lipstream runs from, with a + where files differ from it; empty where it is no checkout."""
    folder = Path(__file__).parent
    try:
        name = _git(folder, "rev-parse", "--short", "HEAD")
        return name + ("+" if _git(folder, "status", "--porcelain", "--", str(folder.parent)) else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def wait_for(device: torch.device) -> None:
    """Until the device has done what it was given; the CPU has."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


class PeakMemory:
    """Peak memory of the process and of its CUDA device since the last `reset`, MB; None where not measurable."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._can_reset = False

    def reset(self) -> None:
        """Forget what was before."""
        try:
            Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak becomes what is in memory now
            self._can_reset = True
        except OSError:
            self._can_reset = False
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)

    def host_mb(self) -> float | None:
        """Of the process, everything that is loaded included."""
        if not self._can_reset:
            return None
        lines = Path("/proc/self/status").read_text("utf-8").splitlines()
        return next((int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM")), None)

    def device_mb(self) -> float | None:
        """Of torch's tensors on the device, everything that is loaded included."""
        return torch.cuda.max_memory_allocated(self._device) / 1e6 if self._device.type == "cuda" else None


class MatrixRate:
    """What a device does at most, near enough: a matmul of square matrices large enough to be timed."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._device = device
        size = 256
        while True:
            self._matrix = torch.randn(size, size, device=device).to(dtype)
            self._seconds()  # the first of its size
            if self._seconds() > _MATMUL_S or size >= _LARGEST_MATMUL:
                break
            size *= 2

    def flop_per_s(self) -> float:
        """Measured now: the median of three."""
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
