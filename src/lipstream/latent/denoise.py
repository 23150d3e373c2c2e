"""From noise to latents: the sampling loop and the one call that everything which denoises answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from lipstream.latent.conditioning import Conditioning
from lipstream.models.unet import UNet


class Denoiser(Protocol):
    """What a U-Net, or an engine in its place, does in one step."""

    def __call__(self, latents: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        """The predicted noise (or what the model's scheduler calls for), float32, in the shape of `latents`.

        latents: (windows * num_frames, C, h, w), float32. timestep: scalar.
        """


class UNetDenoiser:
    """Runs the U-Net in its own dtype; the latents stay float32 between the steps."""

    def __init__(self, unet: UNet) -> None:
        self._unet = unet
        self._dtype = unet.conv_in.weight.dtype

    def __call__(self, latents: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        """See Denoiser."""
        sample = torch.cat((latents.to(self._dtype), conditioning.channels.to(self._dtype)), dim=1)
        audio = conditioning.audio.to(self._dtype)
        noise: Tensor = self._unet(sample, timestep, audio, conditioning.num_frames)
        return noise.float()


def initial_noise(channels: int, height: int, width: int, seed: int) -> Tensor:
    """The one noise image that every frame starts from: (1, channels, height, width), float32.

    Drawn on the CPU, so that a seed means the same picture on any device.
    """
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((1, channels, height, width), generator=generator)


def sample(
    denoiser: Denoiser,
    scheduler_words: Mapping[str, Any],
    noise: Tensor,
    conditioning: Conditioning,
    *,
    num_inference_steps: int,
    guidance_scale: float,
) -> Tensor:
    """Denoise windows of frames: latents (windows * num_frames, C, h, w), float32.

    scheduler_words: settings of diffusers' DDIMScheduler. noise: (1, C, h, w), used for every frame.
    Above a guidance scale of 1.0, zero audio is computed beside the audio and
    noise(zero) + guidance_scale * (noise(audio) - noise(zero)) is taken (Ho and Salimans 2022).
    """
    scheduler: Any = DDIMScheduler.from_config(dict(scheduler_words))  # type: ignore[no-untyped-call]
    scheduler.set_timesteps(num_inference_steps)
    guided = guidance_scale > 1.0
    seen = _with_zero_audio(conditioning) if guided else conditioning
    latents = noise.expand(len(conditioning.channels), -1, -1, -1) * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        predicted = denoiser(torch.cat((latents, latents)) if guided else latents, timestep, seen)
        if guided:
            zero, heard = predicted.chunk(2)
            predicted = zero + guidance_scale * (heard - zero)
        latents = scheduler.step(predicted, timestep, latents).prev_sample
    return latents


def _with_zero_audio(conditioning: Conditioning) -> Conditioning:
    channels = torch.cat((conditioning.channels, conditioning.channels))
    audio = torch.cat((torch.zeros_like(conditioning.audio), conditioning.audio))
    return Conditioning(channels, audio, conditioning.num_frames)
