"""Seeded augmentation: warps, mirroring and colour for crops; voice and room for mels."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def uniform(n: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    """Draw `n` float32 values from [low, high)."""
    return torch.rand(n, generator=generator) * (high - low) + low


def warp(images: Tensor, size: int, generator: torch.Generator, *, strength: float = 1.0) -> Tensor:
    """Warp each image by a random similarity, mirror half of them, and crop the central `size` pixels.

    images: (n, 3, height, width). Returns (n, 3, size, size). At strength 1: up to 6 degrees, 8 % of size, 6 % of
    aspect, 4 % of shift.
    """
    n, _, height, width = images.shape
    angle = uniform(n, -math.radians(6), math.radians(6), generator) * strength
    scale = 1 + uniform(n, -0.08, 0.08, generator) * strength
    aspect = 1 + uniform(n, -0.06, 0.06, generator) * strength
    mirror = torch.where(torch.rand(n, generator=generator) < 0.5, -1.0, 1.0)
    shift = (torch.rand(n, 2, generator=generator) - 0.5) * 0.08 * strength
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    rows = torch.stack(
        (
            torch.stack((cos * aspect * mirror * size / width, -sin * size / width, shift[:, 0]), -1),
            torch.stack((sin * mirror * size / height, cos / aspect * size / height, shift[:, 1]), -1),
        ),
        1,
    ).to(images.device)
    grid = F.affine_grid(rows, [n, 3, size, size], align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def equalise(mel: Tensor, generator: torch.Generator) -> Tensor:
    """Add a random level and spectral tilt, as of another microphone. mel: normalised, (1, n_mels, columns)."""
    level, tilt = ((torch.rand(2, generator=generator) - 0.5) * 0.3).tolist()
    return mel + level + tilt * torch.linspace(-1, 1, mel.shape[1])[None, :, None]


def vary_voices(mel: Tensor, generator: torch.Generator) -> Tensor:
    """Vary the voice and the room of each normalised mel (n, n_mels, columns).

    Random level and tilt, frequencies stretched by up to 8 % and shifted by up to two bands, up to 12 adjacent bands
    replaced by the mean, and noise.
    """
    n, n_mels, columns = mel.shape

    def draw(low: float, high: float) -> Tensor:
        return uniform(n, low, high, generator)[:, None]

    bands = torch.arange(float(n_mels))[None]
    mel = mel + (draw(-0.15, 0.15) + draw(-0.15, 0.15) * (2 * bands / (n_mels - 1) - 1))[..., None]
    position = (bands * (1 + draw(-0.08, 0.08)) + draw(-2, 2)).clamp(0, n_mels - 1.01)
    below = position.long()
    lower, upper = (mel.gather(1, index[..., None].expand(-1, -1, columns)) for index in (below, below + 1))
    mel = torch.lerp(lower, upper, (position - below)[..., None])
    first = draw(0, n_mels)
    missing = (bands >= first) & (bands < first + draw(0, 12))
    mel = torch.where(missing[..., None], mel.mean(1, keepdim=True), mel)
    return mel + 0.1 * torch.randn(mel.shape, generator=generator)


def colour(images: Tensor, generator: torch.Generator, *, strength: float = 1.0) -> Tensor:
    """Vary brightness, contrast, saturation, channel gains and gamma of each image.

    images: (n, 3, h, w) in [-1, 1], as is the result.
    """
    n = images.shape[0]

    def draw(spread: float, *shape: int) -> Tensor:
        noise = (torch.rand(n, *shape, 1, 1, generator=generator) - 0.5) * 2
        return torch.exp(noise * spread * strength).to(images.device)

    x = (images.clamp(-1, 1) + 1) / 2
    x = x.clamp_min(1e-4) ** draw(0.3, 1)
    grey = x.mean(1, keepdim=True)
    x = grey + (x - grey) * draw(0.35, 1)
    middle = x.mean((1, 2, 3), keepdim=True)
    x = middle + (x - middle) * draw(0.25, 1)
    x = x * draw(0.15, 3) * draw(0.25, 1)
    return (x * 2 - 1).clamp(-1, 1)
