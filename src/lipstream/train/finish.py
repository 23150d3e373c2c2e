"""The last touch: the decoder learns to make clean pictures of what the U-Net predicts.

A U-Net trained by regression predicts the mean of what may be, and a decoder that only ever saw encodings makes a blur
of it. Here the decoder sees predictions, and besides the pixels the strength of the fine texture must be right at
every place, wherever its grains lie, and a critic that learns alongside must take it for a true one (Goodfellow et al.
2014, https://arxiv.org/abs/1406.2661, by patches as in https://arxiv.org/abs/1611.07004). The encoder and the U-Net
stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lipstream.latent import conditioning
from lipstream.train import losses
from lipstream.train.latents import LatentClip, Sampler
from lipstream.train.loop import LoopSettings, Report, Run, load_average
from lipstream.train.unet import Pair, UNetSettings

# Texture is compared over patches of so many pixels: small enough to tell lips from teeth, too large to tell grains.
_PATCH = 8


@dataclass(frozen=True)
class FinishSettings:
    """Batch and loss weights. encoded_share: frames decoded from their own latents, so that those stay sharp.

    The critic is listened to after so many steps; critic_weight: how strongly it pulls at the pictures beside the rest.
    """

    windows: int = 2
    num_frames: int = 8
    decoded_frames: int = 10
    encoded_share: float = 0.3
    mouth_gain: float = 8.0
    texture_weight: float = 3.0
    critic_weight: float = 0.5
    critic_from_step: int = 100


class Critic(nn.Module):
    """Pictures (n, 3, size, size) in [-1, 1] to how true their patches are: (n, 1, size / 4, size / 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 32, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(32, 64, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(64, 64, 3, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(64, 1, 3, padding=1),
        )

    def forward(self, pictures: Tensor) -> Tensor:
        return self.layers(pictures)

    def lesson(self, made: Tensor, true: Tensor, region: Tensor) -> Tensor:
        """Its own loss: true patches above 1, made ones below -1. A scalar; region broadcasts over patches."""
        margin = F.relu(1 - self(true)) + F.relu(1 + self(made.detach()))
        return _mean(margin, region)

    def verdict(self, made: Tensor, region: Tensor) -> Tensor:
        """Loss of who made the pictures; leaves no gradient in the critic."""
        frozen = {name: value.detach() for name, value in self.named_parameters()}
        judged: Tensor = torch.func.functional_call(self, frozen, (made,))
        return -_mean(judged, region)


def _pull(loss: Tensor, pictures: Tensor) -> Tensor:
    """How strongly a loss pulls at the pictures: the norm of its gradient."""
    (gradient,) = torch.autograd.grad(loss, pictures, retain_graph=True)
    return gradient.norm().clamp_min(1e-8)


def _mean(values: Tensor, weight: Tensor) -> Tensor:
    return (values * weight).sum() / (weight.sum() * len(values))


def texture_loss(predicted: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Difference of the mean absolute Laplacians of patches. A scalar.

    predicted, target: (n, 3, h, w); weight broadcasts over them.
    """
    strengths = [
        F.avg_pool2d(losses.laplacian(x).abs().mean(1, keepdim=True), _PATCH, _PATCH // 2) for x in (predicted, target)
    ]
    patches = F.avg_pool2d(weight[..., 1:-1, 1:-1], _PATCH, _PATCH // 2)
    return ((strengths[0] - strengths[1]).abs() * patches).mean()


def _with_critic(vae: Any) -> nn.Module:
    # One module, and so one optimizer, for both: what is saved and resumed is then the critic too.
    return nn.ModuleDict({"autoencoder": vae, "critic": Critic()})


def load(folder: Path, vae: Any) -> int:
    """Load what `train` made in `folder` into an autoencoder; returns the step it is from."""
    return load_average(folder, _with_critic(vae))


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
    run = Run(folder, _with_critic(vae), loop, device)
    autoencoder: Any = run.module["autoencoder"]  # type: ignore[index]
    critic: Any = run.module["critic"]  # type: ignore[index]
    sampler = Sampler(clips, mask, footage_share=unet.footage_share, dubbed_share=unet.dubbed_share)
    size = mask.shape[-1]
    weight = (losses.mouth_weight(size, settings.mouth_gain) * (0.05 + (1 - mask[None]))).to(device)

    region = F.interpolate(1 - mask[None], scale_factor=0.25, mode="area").to(device)

    def loss(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        batch = sampler.draw(settings.windows, settings.num_frames, generator, device)
        noise = torch.randn((settings.windows, *batch.latents.shape[1:]), generator=generator).to(device)
        with torch.no_grad():
            predicted = pair.predict(batch, noise.repeat_interleave(settings.num_frames, 0))
        chosen = torch.randperm(len(predicted), generator=generator)[: settings.decoded_frames].to(device)
        own = round(settings.encoded_share * len(chosen))
        latents = torch.cat((batch.latents[chosen[:own]], predicted[chosen[own:]]))
        decoded, target = conditioning.decode(autoencoder, latents), batch.crops[chosen]
        pixels = losses.pixel_loss(decoded, target, weight, laplacian_gain=0.25)
        texture = texture_loss(decoded, target, weight)
        lesson, verdict = critic.lesson(decoded, target, region), critic.verdict(decoded, region)
        likeness = pixels + settings.texture_weight * texture
        total = likeness + lesson
        if step >= settings.critic_from_step:
            total = total + settings.critic_weight * _pull(likeness, decoded) / _pull(verdict, decoded) * verdict
        return {"loss": total, "pixels": pixels, "texture": texture, "lesson": lesson, "verdict": verdict}

    average: Any = run.average["autoencoder"]  # type: ignore[index]
    run.train(loss, report, None if after_save is None else lambda step: after_save(average, step))
    return average
