"""Train a small autoencoder (diffusers' AutoencoderKL with 8x downsampling) with a critic of the mouth."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from lipstream_lab.train import augment, losses
from lipstream_lab.train.critic import Critic, CriticSettings, WithCritic
from lipstream_lab.train.loop import CHECKPOINT_NAME, LoopSettings, Report, Run


@dataclass(frozen=True)
class VaeSettings(CriticSettings):
    """Sizes and loss weights. resolution: side of the crops in pixels.

    block_out_channels: what a picture costs is settled by the first, which computes at its full size. Processors take
    sixteen numbers at a time.
    """

    resolution: int = 128
    latent_channels: int = 8
    block_out_channels: tuple[int, ...] = (16, 32, 64, 96)
    batch_size: int = 12
    mouth_gain: float = 6.0
    kl_weight: float = 1e-4
    color_weight: float = 3.0
    latents_weight: float = 2.0
    texture_weight: float = 4.0
    critic_weight: float = 0.05
    features_weight: float = 0.5


def build(settings: VaeSettings) -> Any:
    """Build an untrained AutoencoderKL without mid-block attention and quantisation convolutions."""
    levels = len(settings.block_out_channels)
    vae: Any = AutoencoderKL(  # type: ignore[no-untyped-call]
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=settings.block_out_channels,
        layers_per_block=1,
        latent_channels=settings.latent_channels,
        norm_num_groups=8,
        sample_size=settings.resolution,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    )
    return vae.to(memory_format=torch.channels_last)


def batch(images: np.ndarray[Any, Any], settings: VaeSettings, generator: torch.Generator) -> Tensor:
    """Draw augmented crops (batch_size, 3, resolution, resolution) in [-1, 1] from uint8 (n, h, w, 3)."""
    index = torch.randint(len(images), (settings.batch_size,), generator=generator).tolist()
    chosen = torch.from_numpy(np.stack([images[i] for i in index])).permute(0, 3, 1, 2).float() / 127.5 - 1
    return augment.colour(augment.warp(chosen, settings.resolution, generator), generator)


def train(
    images: np.ndarray[Any, Any],
    folder: Path,
    settings: VaeSettings,
    loop: LoopSettings,
    device: torch.device,
    report: Report | None = None,
    after_save: Callable[[Any, int], None] | None = None,
    decoder_only: bool = False,
    begin: Mapping[str, Tensor] | None = None,
    teacher: Any = None,
) -> Any:
    """Train on crops uint8 (n, h, w, 3); return the averaged autoencoder.

    decoder_only: freeze the encoder, so that latents computed earlier remain valid. begin: tensors of the autoencoder
    to begin from. teacher: a frozen autoencoder of other sizes, whose latents this one learns to encode to and to
    decode.
    """
    torch.manual_seed(loop.seed)
    vae = build(settings)
    if begin is not None:
        vae.load_state_dict(begin)
    if decoder_only:
        vae.encoder.requires_grad_(False)
    run = Run(folder, WithCritic(vae), loop, device)
    judged: WithCritic = run.module  # type: ignore[assignment]
    weight = losses.mouth_weight(settings.resolution, settings.mouth_gain).to(device)

    def loss(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        target = batch(images, settings, generator).to(device).contiguous(memory_format=torch.channels_last)
        posterior: Any = judged.vae.encode(target).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator).to(device)
        decoded = judged.vae.decode(posterior.mean + posterior.std * noise).sample.float()
        mean, variance = posterior.mean.float(), posterior.var.float()
        kl = 0.5 * (mean.square() + variance - 1 - variance.log()).mean()
        pixels = losses.pixel_loss(decoded, target, weight)
        color = losses.color_loss(decoded, target)
        off = torch.zeros(()) if teacher is None else latents_off(posterior.mean, teacher, target)
        drawn = judged.losses(decoded, target, weight, settings, step)
        error = (decoded.detach() - target).square().mean()
        total = pixels + settings.color_weight * color + settings.latents_weight * off + settings.kl_weight * kl
        parts = {"pixels": pixels, "color": color, "latents": off, "kl": kl}
        return {**drawn, **parts, "loss": total + drawn["loss"], "psnr_db": 10 * torch.log10(4 / error)}

    run.train(loss, report, None if after_save is None else lambda step: after_save(run.average.vae, step))
    averaged: Any = run.average
    return averaged.vae


def latents_off(latents: Tensor, teacher: Any, pictures: Tensor) -> Tensor:
    """Return the error of latents as a share of the spread of the teacher's, a scalar."""
    with torch.no_grad():
        wanted = teacher.encode(pictures).latent_dist.mode().float()
    return (latents.float() - wanted).square().mean() / wanted.var()


def load(folder: Path) -> tuple[Any, Critic]:
    """Return the averaged autoencoder of a run, as wide as it was trained, and its critic."""
    average = torch.load(folder / CHECKPOINT_NAME, map_location="cpu", weights_only=True)["average"]
    loaded = WithCritic(build(_settings_of(average)))
    loaded.load_state_dict(average)
    return loaded.vae, loaded.critic


def _settings_of(average: Mapping[str, Tensor]) -> VaeSettings:
    """Return the sizes of an autoencoder with its critic, from their tensors."""
    levels = sum(name.endswith("resnets.0.conv1.weight") for name in average if "encoder.down_blocks" in name)
    widths = [len(average[f"vae.encoder.down_blocks.{level}.resnets.0.conv1.weight"]) for level in range(levels)]
    channels = average["vae.decoder.conv_in.weight"].shape[1]
    return VaeSettings(latent_channels=channels, block_out_channels=tuple(widths))


def measured_scale(vae: Any, images: Tensor) -> float:
    """Return the scaling factor that gives latents of `images` (n, 3, h, w) a standard deviation of one."""
    with torch.inference_mode():
        return 1 / float(vae.encode(images).latent_dist.mode().std())
