"""Denoisers without one exact saving each, for benchmarks against the ones that have it."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from lipstream.diffusion.conditioning import Conditioning
from lipstream.diffusion.sampling import UNetDenoiser
from lipstream.models.unet import Prepared, UNet


class UncachedDenoiser(UNetDenoiser):
    """Keeps the conditioning, for subclasses that compute from it at every step."""

    def __init__(self, unet: UNet) -> None:
        super().__init__(unet)
        self.unet, self.dtype = unet, unet.conv_in.weight.dtype

    def prepare(self, conditioning: Conditioning) -> Prepared:
        self.channels, self.audio = conditioning.channels.to(self.dtype), conditioning.audio.to(self.dtype)
        return Prepared(self.channels[:0], (), conditioning.num_frames)


class AudioKeysEveryStep(UncachedDenoiser):
    """Computes the cross-attention keys and values at every step."""

    def prepare(self, conditioning: Conditioning) -> Prepared:
        return replace(super().prepare(conditioning), conv_in_features=self.unet.conv_in_features(self.channels))

    def __call__(
        self, latents: Tensor, timestep: Tensor, prepared: Prepared, guided: bool, deep: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        return super().__call__(
            latents, timestep, replace(prepared, audio=self.unet.audio_keys_values(self.audio)), guided, deep
        )


class InputConvolutionEveryStep(UncachedDenoiser):
    """Computes the constant part of the first convolution at every step."""

    def prepare(self, conditioning: Conditioning) -> Prepared:
        return replace(super().prepare(conditioning), audio=self.unet.audio_keys_values(self.audio))

    def __call__(
        self, latents: Tensor, timestep: Tensor, prepared: Prepared, guided: bool, deep: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        return super().__call__(
            latents,
            timestep,
            replace(prepared, conv_in_features=self.unet.conv_in_features(self.channels)),
            guided,
            deep,
        )


class SeparateBranches(UNetDenoiser):
    """Computes both branches of guidance from the first layer on."""

    def prepare(self, conditioning: Conditioning) -> Prepared:
        prepared = super().prepare(conditioning)
        return replace(prepared, conv_in_features=torch.cat((prepared.conv_in_features,) * 2))

    def __call__(
        self, latents: Tensor, timestep: Tensor, prepared: Prepared, guided: bool, deep: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        return super().__call__(torch.cat((latents, latents)), timestep, prepared, guided, deep)


class ZeroAudioComputed(UNetDenoiser):
    """Computes both branches as one batch, including cross-attention on zero audio."""

    def prepare(self, conditioning: Conditioning) -> Prepared:
        channels = torch.cat((conditioning.channels, conditioning.channels))
        audio = torch.cat((torch.zeros_like(conditioning.audio), conditioning.audio))
        return super().prepare(Conditioning(channels, audio, conditioning.num_frames))

    def __call__(
        self, latents: Tensor, timestep: Tensor, prepared: Prepared, guided: bool, deep: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        return super().__call__(torch.cat((latents, latents)), timestep, prepared, False, deep)


class PublishedDenoiser(UncachedDenoiser):
    """Computes both branches as one batch, everything at every step, as the published code does."""

    def __call__(
        self, latents: Tensor, timestep: Tensor, prepared: Prepared, guided: bool, deep: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        given = torch.cat((latents.to(self.dtype), self.channels), 1)
        audio = torch.cat((torch.zeros_like(self.audio), self.audio))
        noise: Tensor = self.unet(torch.cat((given, given)), timestep.to(latents.device), audio, prepared.num_frames)
        return noise.float(), latents[:0]
