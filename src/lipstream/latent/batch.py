"""How many windows share a U-Net call, and how many calls are made beside one another."""

from __future__ import annotations

from typing import Literal

import torch

from lipstream.latent import conditioning, denoise
from lipstream.models.load import Model
from lipstream.models.unet import UNet
from lipstream.runtime.device import face_threads, torch_device
from lipstream.settings import RuntimeSettings, Sampling

MOST_WINDOWS = 4
# The rest is for the encoding of the next windows, a compiled step's own memory, fragments, and other programs.
_SHARE_OF_FREE = 0.5
_AUDIO_TOKENS = 50
# A network of fewer numbers computes too little at a time to be split among cores.
_SMALL = 50_000_000
# The frames of every call are in memory.
_MOST_SIDE_BY_SIDE = 4


def windows_that_fit(free_bytes: int, window_bytes: int) -> int:
    """Windows a call, from 1 to MOST_WINDOWS, when one takes `window_bytes` at its peak."""
    return max(1, min(MOST_WINDOWS, int(_SHARE_OF_FREE * free_bytes / window_bytes)))


def calls_side_by_side(unet: UNet, runtime: RuntimeSettings) -> int | None:
    """How many calls are made beside one another, each on a core of its own; None for one that takes all it can get.

    So for small networks on a CPU: threads that wait for one another at every layer do badly beside those of other
    stages and programs. What torch compiles has its own number of threads.
    """
    is_small = sum(tensor.numel() for tensor in unet.state_dict().values()) < _SMALL
    if torch_device(runtime).type != "cpu" or runtime.compile or not is_small:
        return None
    return min(face_threads(runtime), _MOST_SIDE_BY_SIDE)


def windows_a_call(batch: int | Literal["auto"], model: Model, device: torch.device) -> int:
    """RuntimeSettings' `batch` as a number."""
    return _auto_batch(model, device) if batch == "auto" else batch


def _auto_batch(model: Model, device: torch.device) -> int:
    """Windows a call for a loaded model: on CUDA as memory allows, measured on one window; elsewhere 1.

    A CPU is as busy with one window as with many.
    """
    if device.type != "cuda":
        return 1
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    held = torch.cuda.memory_allocated(device)
    _try_one_window(model, device)
    window_bytes = torch.cuda.max_memory_allocated(device) - held
    torch.cuda.empty_cache()
    return windows_that_fit(torch.cuda.mem_get_info(device)[0], window_bytes)


@torch.inference_mode()
def _try_one_window(model: Model, device: torch.device) -> None:
    config = model.config
    n, resolution = config.num_frames, config.resolution
    pixels = torch.zeros((n, 3, resolution, resolution), device=device)
    mask = torch.ones((1, resolution, resolution), device=device)
    audio = torch.zeros((n, _AUDIO_TOKENS, config.unet.cross_attention_dim), device=device)
    seen = conditioning.condition(model.vae, pixels, mask, audio, n)
    height, width = seen.channels.shape[-2:]
    noise = denoise.initial_noise(config.unet.out_channels, height, width, seed=0).to(device)
    guided = Sampling(num_inference_steps=1, guidance_scale=2.0)
    latents = denoise.sample(denoise.UNetDenoiser(model.unet), config.scheduler, noise, seen, guided)
    conditioning.decode(model.vae, latents)
