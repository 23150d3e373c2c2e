"""Between pixels and latents: what the U-Net sees beside the noise, and the way back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lipstream.models.load import vae_factor

# The VAE takes images one by one: more in a call cost memory and save nothing. On a CPU so many are fastest that the
# widest layers' results, of about so many bytes, stay in its caches.
_IMAGES = 16
_CACHED_BYTES = 8 * 2**20
# CUDA's enlargement of channels-last images counts in 32 bits.
_MOST_NUMBERS = 2**31 - 1


@dataclass(frozen=True)
class Conditioning:
    """All that stays the same over the steps, for windows of `num_frames` frames lying one after another.

    channels: (windows * num_frames, 1 + 2 C, h, w): mask, latents of the masked crop, latents of the whole crop.
    audio: (windows * num_frames, tokens, dim).
    """

    channels: Tensor
    audio: Tensor
    num_frames: int


def to_pixels(faces: Tensor) -> Tensor:
    """Crops (n, 3, h, w) uint8 RGB to float32 in [-1, 1]."""
    return faces.float() / 127.5 - 1.0


def _no_check() -> None:
    pass


def encode(vae: Any, pixels: Tensor, check: Callable[[], None] = _no_check) -> Tensor:
    """Return latents (n, C, h / factor, w / factor) of pixels (n, 3, h, w) in [-1, 1], at the mode of the distribution.

    vae: diffusers' AutoencoderKL. The published code draws from the distribution; the mode needs no random numbers.
    check: called before each call of the VAE.
    """
    parts = torch.split(pixels.to(vae.device, vae.dtype), _images_a_call(vae, pixels.shape[-2:]))
    latents = torch.cat([_encoded(vae, part, check) for part in parts]).to(pixels.device)
    return (latents - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor


def _encoded(vae: Any, pixels: Tensor, check: Callable[[], None]) -> Any:
    check()
    return vae.encode(pixels).latent_dist.mode()


def decode(vae: Any, latents: Tensor, check: Callable[[], None] = _no_check) -> Tensor:
    """Return pixels (n, 3, h, w), about [-1, 1] and float32, of latents (n, C, h / factor, w / factor).

    check: called before each call of the VAE.
    """
    scaled = latents / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)
    height, width = (length * vae_factor(vae) for length in latents.shape[-2:])
    parts = torch.split(scaled.to(vae.device, vae.dtype), _images_a_call(vae, (height, width)))
    return torch.cat([_decoded(vae, part, check) for part in parts]).to(latents.device, torch.float32)


def _decoded(vae: Any, latents: Tensor, check: Callable[[], None]) -> Any:
    check()
    return vae.decode(latents).sample


def _images_a_call(vae: Any, size: Sequence[int]) -> int:
    """Images of `size` (height, width) that the VAE is given at once."""
    pixels, widths = size[0] * size[1], vae.config.block_out_channels
    if vae.device.type == "cpu":
        most = _CACHED_BYTES // (widths[0] * pixels * vae.dtype.itemsize)
    else:  # what the last enlargement makes is as wide as the second level
        most = _MOST_NUMBERS // (max(widths[:2]) * pixels)
    return min(max(most, 1), _IMAGES)


def condition(
    vae: Any,
    pixels: Tensor,
    mask: Tensor,
    audio: Tensor,
    num_frames: int,
    check: Callable[[], None] = _no_check,
) -> Conditioning:
    """Encode the masked and the whole crops.

    pixels: (n, 3, res, res) in [-1, 1]. mask: (1, res, res), 1 = keep; scaled to the latents by nearest neighbour.
    audio: (n, tokens, dim). check: called before each call of the VAE.
    """
    masked_latents, latents = encode(vae, torch.cat((pixels * mask, pixels)), check).chunk(2)
    mask_latents = F.interpolate(mask[None], size=latents.shape[-2:]).expand(len(pixels), -1, -1, -1)
    channels = torch.cat((mask_latents.to(latents.dtype), masked_latents, latents), dim=1)
    return Conditioning(channels, audio, num_frames)


def keep_surroundings(decoded: Tensor, pixels: Tensor, mask: Tensor) -> Tensor:
    """Decoded pixels where the mask is 0, the crop's own where it is 1 (all (n, 3, res, res) and (1, res, res))."""
    return decoded * (1.0 - mask) + pixels * mask
