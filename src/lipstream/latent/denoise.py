"""From noise to latents: the sampling loop and the one call that everything which denoises answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from lipstream.latent.conditioning import Conditioning
from lipstream.models.unet import Prepared, Step, UNet


class Denoiser(Protocol):
    """What a U-Net, or an engine in its place, does: once for a call's windows, then once a step."""

    def prepare(self, conditioning: Conditioning) -> Prepared:
        """All that stays the same over the steps; handed back to every step."""

    def __call__(self, latents: Tensor, timestep: Tensor, prepared: Prepared, guided: bool) -> Tensor:
        """The predicted noise (or what the model's scheduler calls for), float32, in the shape of `latents`.

        latents: (windows * num_frames, C, h, w), float32. timestep: scalar. guided: twice as many frames come back,
        first what is predicted without audio, then with it.
        """


class UNetDenoiser:
    """Runs the U-Net in its own dtype; the latents stay float32 between the steps.

    step: something faster that does what `unet.step` does, in its place (see lipstream.accelerate).
    """

    def __init__(self, unet: UNet, step: Step | None = None) -> None:
        self._unet = unet
        self._step = step or unet.step
        self._dtype = unet.conv_in.weight.dtype

    def prepare(self, conditioning: Conditioning) -> Prepared:
        """See Denoiser."""
        channels, audio = conditioning.channels.to(self._dtype), conditioning.audio.to(self._dtype)
        return self._unet.prepare(channels, audio, conditioning.num_frames)

    def __call__(self, latents: Tensor, timestep: Tensor, prepared: Prepared, guided: bool) -> Tensor:
        """See Denoiser."""
        return self._step(latents.to(self._dtype), timestep.to(latents.device), prepared, guided).float()


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
    prepared = denoiser.prepare(conditioning)
    latents = noise.expand(len(conditioning.channels), -1, -1, -1) * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        predicted = denoiser(latents, timestep, prepared, guided)
        if guided:
            zero, heard = predicted.chunk(2)
            predicted = zero + guidance_scale * (heard - zero)
        latents = scheduler.step(predicted, timestep, latents).prev_sample
    return latents
