"""The last touch: the decoder learns to make clean pictures of what the U-Net predicts.

A U-Net trained by regression predicts the mean of what may be, and a decoder that only ever saw encodings makes a blur
of it. Here the decoder sees predictions, and besides the pixels the strength of the fine texture must be right at
every place, wherever its grains lie. The encoder and the U-Net stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lipstream.diffusion import conditioning
from lipstream_lab.train import losses
from lipstream_lab.train.latents import LatentClip, Sampler
from lipstream_lab.train.loop import LoopSettings, Report, Run
from lipstream_lab.train.unet import Pair, UNetSettings

# Texture is compared over patches of so many pixels: small enough to tell lips from teeth, too large to tell grains.
_PATCH = 8


@dataclass(frozen=True)
class FinishSettings:
    """Batch and loss weights. encoded_share: frames decoded from their own latents, so that those stay sharp."""

    windows: int = 2
    num_frames: int = 8
    decoded_frames: int = 10
    encoded_share: float = 0.3
    mouth_gain: float = 8.0
    texture_weight: float = 8.0


def texture_loss(predicted: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Difference of the mean absolute Laplacians of patches. A scalar.

    predicted, target: (n, 3, h, w); weight broadcasts over them.
    """
    strengths = [
        F.avg_pool2d(losses.laplacian(x).abs().mean(1, keepdim=True), _PATCH, _PATCH // 2) for x in (predicted, target)
    ]
    patches = F.avg_pool2d(weight[..., 1:-1, 1:-1], _PATCH, _PATCH // 2)
    return ((strengths[0] - strengths[1]).abs() * patches).mean()


def train(
    clips: list[LatentClip],
    pair: Pair,
    vae: Any,
    mask: Tensor,
    folder: Path,
    unet: UNetSettings,
    settings: FinishSettings,
    loop: LoopSettings,
    device: torch.device,
    report: Report | None = None,
    after_save: Callable[[Any, int], None] | None = None,
) -> Any:
    """Train the decoder on predictions of `pair`; returns the averaged autoencoder. mask: (1, res, res), 1 = keep."""
    torch.manual_seed(loop.seed)
    pair = pair.to(device).eval().requires_grad_(False)
    vae.requires_grad_(True).encoder.requires_grad_(False)
    run = Run(folder, vae, loop, device)
    sampler = Sampler(clips, mask, footage_share=unet.footage_share, dubbed_share=unet.dubbed_share)
    size = mask.shape[-1]
    weight = (losses.mouth_weight(size, settings.mouth_gain) * (0.05 + (1 - mask[None]))).to(device)

    def loss(_: int, generator: torch.Generator) -> dict[str, Tensor]:
        batch = sampler.draw(settings.windows, settings.num_frames, generator, device)
        noise = torch.randn((settings.windows, *batch.latents.shape[1:]), generator=generator).to(device)
        with torch.no_grad():
            predicted = pair.predict(batch, noise.repeat_interleave(settings.num_frames, 0))
        chosen = torch.randperm(len(predicted), generator=generator)[: settings.decoded_frames].to(device)
        own = round(settings.encoded_share * len(chosen))
        latents = torch.cat((batch.latents[chosen[:own]], predicted[chosen[own:]]))
        decoded, target = conditioning.decode(run.module, latents), batch.crops[chosen]
        pixels = losses.pixel_loss(decoded, target, weight, laplacian_gain=0.25)
        texture = texture_loss(decoded, target, weight)
        return {"loss": pixels + settings.texture_weight * texture, "pixels": pixels, "texture": texture}

    run.train(loss, report, None if after_save is None else lambda step: after_save(run.average, step))
    return run.average
