"""From noise to latents: the sampling loop and the one call that everything which denoises answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from lipstream.latent.conditioning import Conditioning
from lipstream.latent.schedule import make_scheduler
from lipstream.models.unet import Prepared, Step, UNet
from lipstream.settings import Sampling


class Denoiser(Protocol):
    """What a U-Net, or an engine in its place, does: once for a call's windows, then once a step."""

    def prepare(self, conditioning: Conditioning) -> Prepared:
        """All that stays the same over the steps; handed back to every step."""

    def __call__(
        self, latents: Tensor, timestep: Tensor, prepared: Prepared, guided: bool, deep: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The predicted noise (or what the model's scheduler calls for), float32, and the deep features.

        latents: (windows * num_frames, C, h, w), float32. timestep: scalar, on their device. The prediction has the
        shape of `latents`; guided: twice as many frames, first what is predicted without audio, then with it. deep:
        features that another step returned, guided alike, taken in place of computing them.
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

    def __call__(
        self, latents: Tensor, timestep: Tensor, prepared: Prepared, guided: bool, deep: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See Denoiser."""
        predicted, deep = self._step(latents.to(self._dtype), timestep, prepared, guided, deep)
        return predicted.float(), deep


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
    sampling: Sampling,
) -> Tensor:
    """Denoise windows of frames: latents (windows * num_frames, C, h, w), float32.

    scheduler_words: settings of diffusers' DDIMScheduler. noise: (1, C, h, w), used for every frame.
    Where a step is guided, zero audio is computed beside the audio and
    noise(zero) + guidance_scale * (noise(audio) - noise(zero)) is taken (Ho and Salimans 2022).
    Raises SettingsError for a scheduler that the model's words do not allow.
    """
    scheduler = make_scheduler(scheduler_words, sampling.scheduler, sampling.num_inference_steps)
    prepared = denoiser.prepare(conditioning)
    latents = noise.expand(len(conditioning.channels), -1, -1, -1) * scheduler.init_noise_sigma
    deep = None
    # All at once: a copy at every step would have the device wait for the host, and the host for the device.
    there = scheduler.timesteps.to(latents.device)
    for step, timestep in enumerate(scheduler.timesteps):
        guided = sampling.guided(step)
        # Deep features have the branches of the step that made them: where guidance begins or ends they are made anew.
        if step % sampling.step_cache == 0 or guided != sampling.guided(step - 1):
            deep = None
        predicted, deep = denoiser(latents, there[step], prepared, guided, deep)
        if guided:
            zero, heard = predicted.chunk(2)
            predicted = zero + sampling.guidance_scale * (heard - zero)
        latents = scheduler.step(predicted, timestep, latents).prev_sample
    return latents
