"""From noise to latents: the sampling loop and the one call that everything which denoises answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from lipstream.diffusion.conditioning import Conditioning
from lipstream.diffusion.scheduler import make_scheduler
from lipstream.models.unet import Prepared, Step, UNet
from lipstream.presets import Sampling


class Denoiser(Protocol):
    """What a U-Net, or an engine in its place, does: once for a call's windows, then once a step."""

    def prepare(self, conditioning: Conditioning) -> Any:
        """Compute all that stays the same over the steps; it is passed to every step."""

    def __call__(
        self, latents: Tensor, timestep: Tensor, prepared: Any, guided: bool, deep: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the predicted noise (or what the scheduler calls for), float32, and the deep features.

        latents: (windows * num_frames, C, h, w), float32. timestep: scalar, on their device. The prediction has the
        shape of `latents`; guided: twice as many frames, first what is predicted without audio, then with it. deep:
        features that another step returned, guided alike, taken in place of computing them.
        """


class UNetDenoiser:
    """Runs the U-Net in its own dtype and on its own device; the latents stay float32 between the steps.

    step: something faster in the place of `unet.step` (see lipstream.runtime.compile).
    """

    def __init__(self, unet: UNet, step: Step | None = None) -> None:
        self._unet = unet
        self._step = step or unet.step
        self._dtype, self._device = unet.conv_in.weight.dtype, unet.conv_in.weight.device

    def prepare(self, conditioning: Conditioning) -> Prepared:
        """See Denoiser."""
        channels, audio = (t.to(self._device, self._dtype) for t in (conditioning.channels, conditioning.audio))
        return self._unet.prepare(channels, audio, conditioning.num_frames)

    def __call__(
        self, latents: Tensor, timestep: Tensor, prepared: Prepared, guided: bool, deep: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See Denoiser."""
        own, there = latents.to(self._device, self._dtype), timestep.to(self._device)
        predicted, deep = self._step(own, there, prepared, guided, deep)
        return predicted.to(latents.device, torch.float32), deep


def initial_noise(channels: int, height: int, width: int, seed: int) -> Tensor:
    """Draw the one noise image that every frame starts from: (1, channels, height, width), float32.

    Drawn on the CPU, so that a seed means the same picture on any device.
    """
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((1, channels, height, width), generator=generator)


def sample(
    denoiser: Denoiser,
    scheduler_settings: Mapping[str, Any],
    noise: Tensor,
    conditioning: Conditioning,
    sampling: Sampling,
    check: Callable[[], None] = lambda: None,
) -> Tensor:
    """Denoise windows of frames: latents (windows * num_frames, C, h, w), float32.

    scheduler_settings: settings of diffusers' DDIMScheduler. noise: (1, C, h, w), used for every frame.
    Where a step is guided, zero audio is computed beside the audio and
    noise(zero) + guidance_scale * (noise(audio) - noise(zero)) is taken (Ho and Salimans 2022).
    check: called before each step; what it raises ends the loop. Raises SettingsError for a scheduler that the model's
    settings do not allow.
    """
    scheduler = make_scheduler(scheduler_settings, sampling.scheduler, sampling.num_inference_steps)
    prepared = denoiser.prepare(conditioning)
    latents = noise.expand(len(conditioning.channels), -1, -1, -1) * scheduler.init_noise_sigma
    deep = None
    # All at once: a copy at every step would have the device wait for the host, and the host for the device.
    there = scheduler.timesteps.to(latents.device)
    for step, timestep in enumerate(scheduler.timesteps):
        check()
        guided = sampling.guided(step)
        # Deep features have the branches of the step that made them: where guidance begins or ends they are recomputed.
        if step % sampling.step_cache == 0 or guided != sampling.guided(step - 1):
            deep = None
        predicted, deep = denoiser(latents, there[step], prepared, guided, deep)
        if guided:
            zero, with_audio = predicted.chunk(2)
            predicted = zero + sampling.guidance_scale * (with_audio - zero)
        latents = scheduler.step(predicted, timestep, latents).prev_sample
    return latents
