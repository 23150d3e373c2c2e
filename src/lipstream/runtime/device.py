"""Decide what a run computes on: the device, each network's dtype, and where faces are cropped and pasted."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import torch

from lipstream.errors import SettingsError
from lipstream.runtime.cpu import default_threads
from lipstream.settings import Precision, RuntimeSettings

logger = logging.getLogger(__name__)

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn}
_FLOAT8_CAPABILITY = (8, 9)


@dataclass(frozen=True)
class Dtypes:
    """What each network computes in. float8_e4m3fn: the U-Net's linear layers, with float16 for the rest of it."""

    unet: torch.dtype
    vae: torch.dtype
    audio_encoder: torch.dtype


@dataclass(frozen=True)
class FaceGeometry:
    """Where faces are cropped and pasted back: on `device`, `frames` at once in each of `threads` threads."""

    device: torch.device
    threads: int
    frames: int


def torch_device(settings: RuntimeSettings) -> torch.device:
    """Return the device, with `auto` decided. Raises SettingsError for a device that this machine does not have."""
    name = settings.device
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise SettingsError(
            f"device {name!r}: this machine has {torch.cuda.device_count()} CUDA devices", fix="use --device cpu"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise SettingsError(f"device {name!r}: this machine has no Metal device", fix="use --device cpu")
    return device


def torch_dtype(settings: RuntimeSettings, device: torch.device) -> torch.dtype:
    """Return the U-Net's dtype, with `auto` decided. Raises SettingsError where fp8 does not run or does not pay."""
    if settings.precision == "fp8" and not _multiplies_float8(device):
        raise SettingsError(
            f"precision = 'fp8': {device} does not multiply float8; it takes CUDA of compute capability"
            f" {'.'.join(map(str, _FLOAT8_CAPABILITY))} or more",
            fix="use fp16 or bf16",
        )
    if settings.precision == "fp8" and not settings.compile:
        # Finding the scale and casting takes six kernels and 25 bytes per input number uncompiled, which is more time
        # than the faster product saves for layers of fewer than about 4000 outputs: nearly all.
        raise SettingsError(
            "precision = 'fp8' is slower than fp16 unless it is compiled", fix="add --compile, or use fp16"
        )
    return _dtype(settings.precision, device)


def dtypes(settings: RuntimeSettings, device: torch.device) -> Dtypes:
    """Return the dtype of each network, with `auto` and None decided. Raises SettingsError as `torch_dtype` does."""
    unet = torch_dtype(settings, device)
    others = torch.float16 if unet == torch.float8_e4m3fn else unet
    vae, audio_encoder = (
        others if precision is None else _dtype(precision, device)
        for precision in (settings.vae_precision, settings.audio_precision)
    )
    if torch.bfloat16 in (unet, vae, audio_encoder) and settings.engine == "torch" and not computes_bf16(device):
        logger.warning("this processor has no bf16 arithmetic: bf16 will take several times as long as fp32")
    return Dtypes(unet, vae, audio_encoder)


def computes_bf16(device: torch.device) -> bool:
    """Return whether bf16 saves time on `device`: of CPUs on those only for which oneDNN has bf16 code.

    On others, those without AVX-512 for example, torch computes it value by value, ten times slower than float32.
    """
    if device.type != "cpu":
        return True
    has_onednn = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return has_onednn and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def quick_precision(settings: RuntimeSettings) -> RuntimeSettings:
    """Return settings for live speech: a precision left at `auto` becomes bf16 on a CPU that computes it."""
    device = torch_device(settings)
    if settings.precision != "auto" or settings.engine != "torch" or device.type != "cpu" or not computes_bf16(device):
        return settings
    return replace(settings, precision="bf16")


def face_threads(settings: RuntimeSettings) -> int:
    """Return the number of threads for face work, with None decided: one per core that may be used, up to 8."""
    return settings.threads or default_threads()


def face_geometry(settings: RuntimeSettings) -> FaceGeometry:
    """On CUDA, take as many frames together as a window has; elsewhere one by one on the CPU."""
    device = torch_device(settings)
    if device.type == "cuda":
        return FaceGeometry(device, threads=1, frames=16)
    return FaceGeometry(torch.device("cpu"), face_threads(settings), frames=1)


def _dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """float16 for `auto` on CUDA (published behaviour), float32 elsewhere."""
    return _DTYPES[precision if precision != "auto" else "fp16" if device.type == "cuda" else "fp32"]


def _multiplies_float8(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= _FLOAT8_CAPABILITY
