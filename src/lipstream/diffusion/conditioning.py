"""Between pixels and latents: the conditioning channels of the U-Net, and decoding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lipstream.models.load import vae_factor
from lipstream.runtime.memory import PIXELS_PER_GPU_CALL

# On a CPU as many images are fastest as keep the widest layer's output, of about so many bytes, in its caches.
_CACHED_BYTES = 8 * 2**20
_MAX_IMAGES_PER_CPU_CALL = 16


@dataclass(frozen=True)
class Conditioning:
    """The U-Net's conditioning, the same at every step, for consecutive windows of `num_frames` frames.

    channels: (windows * num_frames, 1 + 2 C, h, w): mask, latents of the masked crop, latents of the whole crop.
    audio: (windows * num_frames, tokens, dim).
    """

    channels: Tensor
    audio: Tensor
    num_frames: int


def to_pixels(faces: Tensor) -> Tensor:
    """Convert crops (n, 3, h, w), uint8 RGB, to float32 in [-1, 1]."""
    return faces.float() / 127.5 - 1.0


def _no_check() -> None:
    pass


def encode(vae: Any, pixels: Tensor, check: Callable[[], None] = _no_check) -> Tensor:
    """Return latents (n, C, h / factor, w / factor) of pixels (n, 3, h, w) in [-1, 1], at the mode of the distribution.

    vae: diffusers' AutoencoderKL. The published code draws from the distribution; the mode needs no random numbers.
    check: called before each call of the VAE.
    """
    parts = torch.split(pixels.to(vae.device, vae.dtype), _images_per_call(vae, pixels.shape[-2:]))
    latents = torch.cat([_encoded(vae, part, check) for part in parts]).to(pixels.device)
    return latents * vae.config.scaling_factor


def _encoded(vae: Any, pixels: Tensor, check: Callable[[], None]) -> Any:
    check()
    return vae.encode(pixels).latent_dist.mode()


def decode(vae: Any, latents: Tensor, check: Callable[[], None] = _no_check) -> Tensor:
    """Return pixels (n, 3, h, w), about [-1, 1] and float32, of latents (n, C, h / factor, w / factor).

    check: called before each call of the VAE.
    """
    scaled = latents / vae.config.scaling_factor
    height, width = (length * vae_factor(vae) for length in latents.shape[-2:])
    parts = torch.split(scaled.to(vae.device, vae.dtype), _images_per_call(vae, (height, width)))
    return torch.cat([_decoded(vae, part, check) for part in parts]).to(latents.device, torch.float32)


def _decoded(vae: Any, latents: Tensor, check: Callable[[], None]) -> Any:
    check()
    return vae.decode(latents).sample


def _images_per_call(vae: Any, size: Sequence[int]) -> int:
    """Return the number of images of `size` (height, width) for one call of the VAE."""
    pixels = size[0] * size[1]
    if vae.device.type != "cpu":
        return max(PIXELS_PER_GPU_CALL // pixels, 1)
    fit = _CACHED_BYTES // (vae.config.block_out_channels[0] * pixels * vae.dtype.itemsize)
    return min(max(fit, 1), _MAX_IMAGES_PER_CPU_CALL)


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
    return condition_encoded(torch.cat((masked_latents, latents), dim=1), mask, audio, num_frames)


def condition_encoded(latents: Tensor, mask: Tensor, audio: Tensor, num_frames: int) -> Conditioning:
    """Condition on crops that are encoded. latents: (n, 2 C, h, w), of the masked and the whole crops."""
    mask_latents = F.interpolate(mask[None], size=latents.shape[-2:]).expand(len(latents), -1, -1, -1)
    return Conditioning(torch.cat((mask_latents.to(latents.dtype), latents), dim=1), audio, num_frames)


def keep_surroundings(decoded: Tensor, pixels: Tensor, mask: Tensor) -> Tensor:
    """Take decoded pixels where the mask is 0 and the crop's where it is 1: (n, 3, res, res), mask (1, res, res)."""
    return decoded * (1.0 - mask) + pixels * mask
