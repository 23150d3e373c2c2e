"""Train the U-Net and the VAE's decoder together, on pictures, with a critic of the mouth (`critic.py`).

A U-Net trained by regression predicts conditional means, which a decoder trained on encodings alone decodes to blurred
images. Here both see the picture they make: with a loss on pixels, one on the local strength of fine texture, wherever
its details lie, and the critic's. What the U-Net has learned on latents is kept by the losses that it was learned
with. The encoder and the audio encoder stay frozen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lipstream.diffusion import conditioning
from lipstream_lab.train import audio_encoder, losses
from lipstream_lab.train.critic import Critic, CriticSettings, WithCritic
from lipstream_lab.train.latents import LatentClip
from lipstream_lab.train.lip_reader import MakeJudge, train_reader
from lipstream_lab.train.loop import CHECKPOINT_NAME, LoopSettings, Report, Run, load_average
from lipstream_lab.train.unet import (
    ConditionedUNet,
    UNetSettings,
    judge_reader,
    latent_losses,
    training_sampler,
    window_noise,
)


@dataclass(frozen=True)
class FinishSettings(CriticSettings):
    """Batch size and loss weights. encoded_share: frames decoded from encodings, so that these stay sharp."""

    windows: int = 2
    num_frames: int = 8
    decoded_frames: int = 6
    encoded_share: float = 0.2
    mouth_gain: float = 8.0
    latents_weight: float = 1.0
    pixel_weight: float = 2.0
    chroma_weight: float = 6.0
    texture_weight: float = 8.0
    critic_weight: float = 0.1
    features_weight: float = 1.0


class Finishing(WithCritic):
    """A U-Net with the autoencoder whose decoder is trained beside it, and their critic."""

    def __init__(self, model: ConditionedUNet, vae: Any, critic: Critic | None = None) -> None:
        super().__init__(vae, critic)
        self.model = model


def train(
    clips: list[LatentClip],
    model: ConditionedUNet,
    vae: Any,
    mask: Tensor,
    folder: Path,
    unet: UNetSettings,
    settings: FinishSettings,
    loop: LoopSettings,
    device: torch.device,
    report: Report | None = None,
    after_save: Callable[[Finishing, int], None] | None = None,
    make_judge: MakeJudge | None = None,
    critic: Critic | None = None,
) -> Finishing:
    """Train `model` and the decoder of `vae`; return them averaged. mask: (1, res, res), 1 = keep.

    make_judge: returns what measures the openings of mouths that an autoencoder decodes, from which the lip reader is
    updated; None keeps it fixed. critic: that of the autoencoder's training, to go on with.
    """
    torch.manual_seed(loop.seed)
    if not (folder / CHECKPOINT_NAME).exists():
        model.shape_scale.copy_(audio_encoder.prediction_scale(model.audio_encoder, clips, loop.seed))
    model.audio_encoder.requires_grad_(False)
    vae.requires_grad_(True).encoder.requires_grad_(False)
    reader = train_reader(clips, loop.seed).to(device)
    run = Run(folder, Finishing(model, vae, critic), loop, device, fast=("attn2",), auxiliary=reader)
    finishing: Finishing = run.module  # type: ignore[assignment]
    judge = None if make_judge is None else make_judge(finishing.vae)
    sampler = training_sampler(clips, mask, unet)
    size = mask.shape[-1]
    weight = (losses.mouth_weight(size, settings.mouth_gain) * (0.05 + (1 - mask[None]))).to(device)

    def loss(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        if judge is not None and step % unet.judge_every == 0:
            judge_reader(reader, judge, finishing.model, sampler, clips, unet, loop.seed, step, device)
        batch = sampler.draw(settings.windows, settings.num_frames, generator, device)
        predicted = finishing.model.predict(batch, window_noise(batch, generator))
        parts = latent_losses(predicted, batch, reader, unet)
        chosen = torch.randperm(len(predicted), generator=generator)[: settings.decoded_frames].to(device)
        n_encoded = round(settings.encoded_share * len(chosen))
        latents = torch.cat((batch.latents[chosen[:n_encoded]], predicted[chosen[n_encoded:]]))
        decoded, target = conditioning.decode(finishing.vae, latents), batch.crops[chosen]
        pixels = losses.pixel_loss(decoded, target, weight, laplacian_gain=0.25)
        chroma = losses.chroma_loss(decoded, target, weight)
        drawn = finishing.losses(decoded, target, weight, settings, step)
        total = settings.latents_weight * parts["loss"] + settings.pixel_weight * pixels + drawn["loss"]
        total = total + settings.chroma_weight * chroma
        return {**parts, **drawn, "loss": total, "pixels": pixels, "chroma": chroma}

    run.train(loss, report, None if after_save is None else lambda step: after_save(run.average, step))  # type: ignore[arg-type]
    return run.average  # type: ignore[return-value]


def load(folder: Path, model: ConditionedUNet, vae: Any) -> int:
    """Load the averaged U-Net and decoder of a run into `model` and an autoencoder; return their step."""
    return load_average(folder, Finishing(model, vae))
