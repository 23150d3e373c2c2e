"""Fine-tune the VAE decoder on the U-Net's predictions.

A U-Net trained by regression predicts conditional means, which a decoder trained on encodings alone decodes to blurred
images. Here the decoder is trained on predictions, with a loss on pixels, one on the local strength of fine texture,
wherever its details lie, and a critic of the mouth (`critic.py`). The encoder and the U-Net stay frozen.
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
from lipstream_lab.train.critic import Finishing
from lipstream_lab.train.latents import LatentClip, Sampler
from lipstream_lab.train.loop import LoopSettings, Report, Run, load_average
from lipstream_lab.train.unet import ConditionedUNet, UNetSettings

# Texture strength is compared over patches: small enough to separate lips from teeth, larger than single details.
_PATCH_PX = 8


@dataclass(frozen=True)
class FinishSettings:
    """Batch size and loss weights. encoded_share: frames decoded from encodings, so that these stay sharp.

    critic_steps: that the critic learns alone at first.
    """

    windows: int = 2
    num_frames: int = 8
    decoded_frames: int = 10
    encoded_share: float = 0.3
    mouth_gain: float = 8.0
    texture_weight: float = 8.0
    critic_weight: float = 0.05
    features_weight: float = 0.5
    critic_steps: int = 100


def texture_loss(predicted: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Return the weighted L1 distance of the mean absolute Laplacians of patches, a scalar.

    predicted, target: (n, 3, h, w); weight broadcasts over them.
    """
    strengths = [
        F.avg_pool2d(losses.laplacian(x).abs().mean(1, keepdim=True), _PATCH_PX, _PATCH_PX // 2)
        for x in (predicted, target)
    ]
    patches = F.avg_pool2d(weight[..., 1:-1, 1:-1], _PATCH_PX, _PATCH_PX // 2)
    return ((strengths[0] - strengths[1]).abs() * patches).mean()


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
    after_save: Callable[[Any, int], None] | None = None,
) -> Any:
    """Train the decoder on predictions of `model`; return the averaged VAE. mask: (1, res, res), 1 = keep."""
    torch.manual_seed(loop.seed)
    model = model.to(device).eval().requires_grad_(False)
    vae.requires_grad_(True).encoder.requires_grad_(False)
    run = Run(folder, Finishing(vae), loop, device)
    finishing: Finishing = run.module  # type: ignore[assignment]
    sampler = Sampler(clips, mask, footage_share=unet.footage_share, dubbed_share=unet.dubbed_share)
    size = mask.shape[-1]
    weight = (losses.mouth_weight(size, settings.mouth_gain) * (0.05 + (1 - mask[None]))).to(device)

    def loss(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        batch = sampler.draw(settings.windows, settings.num_frames, generator, device)
        noise = torch.randn((settings.windows, *batch.latents.shape[1:]), generator=generator).to(device)
        with torch.no_grad():
            predicted = model.predict(batch, noise.repeat_interleave(settings.num_frames, 0))
        chosen = torch.randperm(len(predicted), generator=generator)[: settings.decoded_frames].to(device)
        n_encoded = round(settings.encoded_share * len(chosen))
        latents = torch.cat((batch.latents[chosen[:n_encoded]], predicted[chosen[n_encoded:]]))
        decoded, target = conditioning.decode(finishing.vae, latents), batch.crops[chosen]
        pixels = losses.pixel_loss(decoded, target, weight, laplacian_gain=0.25)
        texture = texture_loss(decoded, target, weight)
        critic = finishing.critic_loss(decoded, target)
        total = pixels + settings.texture_weight * texture + critic
        parts = {"pixels": pixels, "texture": texture, "critic": critic}
        if step >= settings.critic_steps:
            verdict, features = finishing.decoder_losses(decoded, target)
            total = total + settings.critic_weight * verdict + settings.features_weight * features
            parts |= {"verdict": verdict, "features": features}
        return {"loss": total, **parts}

    run.train(loss, report, None if after_save is None else lambda step: after_save(run.average.vae, step))
    return run.average.vae


def load(folder: Path, vae: Any) -> None:
    """Load the averaged decoder of a run into an autoencoder."""
    load_average(folder, Finishing(vae))
