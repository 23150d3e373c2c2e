"""Decide how many windows share a U-Net call, and how many calls run beside one another."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal, TypeVar

import torch
from torch import Tensor

from lipstream.diffusion import conditioning
from lipstream.diffusion.conditioning import Conditioning
from lipstream.diffusion.sampling import UNetDenoiser, initial_noise, sample
from lipstream.engines.model import EngineModel
from lipstream.errors import SettingsError
from lipstream.models.load import Model
from lipstream.models.unet import UNet
from lipstream.models.unet_config import UNetConfig
from lipstream.presets import Sampling
from lipstream.runtime.cpu import cores
from lipstream.runtime.device import face_threads, torch_device
from lipstream.settings import RuntimeSettings

T = TypeVar("T")

MOST_WINDOWS = 4
# The rest is for a compiled step's own memory, fragmentation, faces on the device, and other programs.
_SHARE_OF_FREE = 0.6
# A network of fewer parameters computes too little at a time to be split among cores.
_SMALL = 50_000_000
# Up to here a window a core is faster where that leaves no core idle: with 52, 205 and 319 M parameters two windows on
# two cores took 0.82, 0.93 and 0.89 of the time of one after another (benchmarks/side_by_side.py).
_MEDIUM = 400_000_000
# The frames of every call are in memory.
_MOST_SIDE_BY_SIDE = 4


def windows_that_fit(free_bytes: int, window_bytes: int, beside_bytes: int = 0) -> int:
    """Return the windows per call, from 1 to MOST_WINDOWS.

    window_bytes: the peak of one window. beside_bytes: the peak of what runs at the same time, whatever the number.
    """
    return max(1, min(MOST_WINDOWS, int((_SHARE_OF_FREE * free_bytes - beside_bytes) / window_bytes)))


def calls_side_by_side(unet: UNetConfig, runtime: RuntimeSettings) -> int | None:
    """Return how many calls run beside one another, each on one core; None for one call at a time on all cores.

    Several for small networks on a CPU: threads that wait for one another at every layer do badly beside those of other
    stages and programs. torch.compile sets its own number of threads. Several too where a server computes: it takes one
    call while others are on their way.
    """
    if torch_device(runtime).type == "cpu" and runtime.engine == "triton":
        return min(face_threads(runtime), _MOST_SIDE_BY_SIDE)
    with torch.device("meta"):
        parameters = sum(tensor.numel() for tensor in UNet(unet).state_dict().values())
    is_small = parameters < (_MEDIUM if cores() <= _MOST_SIDE_BY_SIDE else _SMALL)
    if torch_device(runtime).type != "cpu" or runtime.compile or not is_small:
        return None
    return min(face_threads(runtime), _MOST_SIDE_BY_SIDE)


def windows_per_call(batch: int | Literal["auto"], model: Model | EngineModel, device: torch.device) -> int:
    """Return RuntimeSettings' `batch` as a number. Raises SettingsError for "auto" of an engine's networks on a GPU."""
    if batch != "auto":
        return batch
    if device.type == "cuda" and not isinstance(model, Model):
        raise SettingsError(
            "batch = 'auto' measures the memory of torch's networks", fix="give a number with --batch", setting="batch"
        )
    return _auto_batch(model, device) if isinstance(model, Model) else 1


def _auto_batch(model: Model, device: torch.device) -> int:
    """On CUDA as many windows as memory allows, measured on one; elsewhere 1.

    A CPU is as busy with one window as with many.
    """
    if device.type != "cuda":
        return 1
    torch.cuda.empty_cache()
    encode_bytes, encoded = _peak_bytes(device, partial(_encode_window, model, device))
    window_bytes, _ = _peak_bytes(device, partial(_denoise_window, model, device, encoded))
    del encoded
    torch.cuda.empty_cache()
    # The next windows are encoded while these are denoised.
    return windows_that_fit(torch.cuda.mem_get_info(device)[0], window_bytes, encode_bytes)


def _peak_bytes(device: torch.device, work: Callable[[], T]) -> tuple[int, T]:
    """Return the bytes that `work` adds to what is allocated, at its peak, and its result."""
    torch.cuda.reset_peak_memory_stats(device)
    held = torch.cuda.memory_allocated(device)
    result = work()
    return torch.cuda.max_memory_allocated(device) - held, result


@torch.inference_mode()
def _encode_window(model: Model, device: torch.device) -> Conditioning:
    config = model.config
    n, resolution = config.num_frames, config.resolution
    pixels = torch.zeros((n, 3, resolution, resolution), device=device)
    mask = torch.ones((1, resolution, resolution), device=device)
    tokens = config.audio_encoder.tokens_per_frame
    audio = torch.zeros((n, tokens, config.unet.cross_attention_dim), device=device)
    return conditioning.condition(model.vae, pixels, mask, audio, n)


@torch.inference_mode()
def _denoise_window(model: Model, device: torch.device, encoded: Conditioning) -> Tensor:
    config = model.config
    height, width = encoded.channels.shape[-2:]
    noise = initial_noise(config.unet.out_channels, height, width, seed=0).to(device)
    guided = Sampling(num_inference_steps=1, guidance_scale=2.0)
    latents = sample(UNetDenoiser(model.unet), config.scheduler, noise, encoded, guided)
    return conditioning.decode(model.vae, latents)
