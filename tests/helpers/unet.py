"""A small U-Net of the published shape with random weights, and what it takes to call it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lipstream.models.unet import UNet
from lipstream.models.unet_config import MotionConfig, UNetConfig

SMALL = UNetConfig(
    block_out_channels=(32, 32, 64),
    down_block_types=("CrossAttnDownBlock3D", "CrossAttnDownBlock3D", "DownBlock3D"),
    up_block_types=("UpBlock3D", "CrossAttnUpBlock3D", "CrossAttnUpBlock3D"),
    layers_per_block=2,
    cross_attention_dim=24,
    attention_head_dim=4,
    norm_num_groups=8,
    motion_module_kwargs=MotionConfig(num_attention_heads=4),
)


def make_unet(config: UNetConfig = SMALL, seed: int = 0) -> UNet:
    """Random weights, in evaluation mode, channels last."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        unet = UNet(config).eval().requires_grad_(False)
    module: Any = unet
    return module.to(memory_format=torch.channels_last)


@dataclass(frozen=True)
class Inputs:
    """Noisy latents, what conditions them, and audio, for windows on end."""

    latents: Tensor
    channels: Tensor
    audio: Tensor
    num_frames: int


def make_inputs(windows: int, num_frames: int, config: UNetConfig = SMALL, size: int = 8, seed: int = 1) -> Inputs:
    """Random numbers of the shapes that `config` takes."""
    generator = torch.Generator().manual_seed(seed)
    n, c = windows * num_frames, config.out_channels
    return Inputs(
        latents=torch.randn(n, c, size, size, generator=generator),
        channels=torch.randn(n, config.in_channels - c, size, size, generator=generator),
        audio=torch.randn(n, 6, config.cross_attention_dim, generator=generator),
        num_frames=num_frames,
    )
