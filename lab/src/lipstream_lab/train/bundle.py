"""Write trained networks as a model folder for `lipstream sync --model FOLDER`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lipstream.errors import SettingsError
from lipstream_lab.train import start
from lipstream_lab.train.unet import POSITION_PERIOD, SCHEDULER_CONFIG, ConditionedUNet, UNetSettings


@dataclass(frozen=True)
class BundleSettings:
    """Entries of the model's configuration besides the sizes of the networks."""

    name: str
    resolution: int
    mask_size: int
    mask_polygon_xy: Sequence[Sequence[float]]
    num_frames: int = 16
    num_inference_steps: int = 1
    guidance_scale: float = 1.0
    notes: str = ""


def write(folder: Path, model: ConditionedUNet, vae: Any, unet: UNetSettings, settings: BundleSettings) -> int:
    """Write the folder atomically, weights in fp16, replacing an earlier one; return its size in bytes.

    vae: AutoencoderKL with the scaling_factor that the U-Net was trained with.
    """
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    (temporary / "vae").mkdir(parents=True)
    config = {
        "format": 1,
        "name": settings.name,
        "resolution": settings.resolution,
        "num_frames": settings.num_frames,
        "mask": {"size": settings.mask_size, "polygon_xy": [list(p) for p in settings.mask_polygon_xy]},
        "scheduler": SCHEDULER_CONFIG,
        "num_inference_steps": settings.num_inference_steps,
        "guidance_scale": settings.guidance_scale,
        "texture": "source",
        "match_color": "source",
        "unet": unet.unet_config(vae.config.latent_channels),
        "audio_encoder": unet.audio_config(),
        "files": {"unet": "unet.safetensors", "audio_encoder": "audio_encoder.safetensors", "vae": "vae"},
        "license": "Apache-2.0",
        "notes": settings.notes,
    }
    (temporary / "lipstream.json").write_text(json.dumps(config) + "\n")
    save_file(_half(model.unet), temporary / "unet.safetensors")
    audio = _half(model.audio_encoder)
    audio["positional_embedding"] = audio["positional_embedding"][:POSITION_PERIOD].clone()
    save_file(audio, temporary / "audio_encoder.safetensors")
    save_file(_half(vae), temporary / "vae" / "diffusion_pytorch_model.safetensors")
    (temporary / "vae" / "config.json").write_text(json.dumps(_vae_config(vae), indent=1) + "\n")
    for path in temporary.rglob("*.safetensors"):
        path.chmod(0o644)  # safetensors makes files readable by the owner only
    previous = folder.with_name(folder.name + ".old")
    shutil.rmtree(previous, ignore_errors=True)
    if folder.exists():
        folder.rename(previous)
    temporary.rename(folder)
    shutil.rmtree(previous, ignore_errors=True)
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def take_mean_with(folder: Path, model: ConditionedUNet, vae: Any, settings: UNetSettings) -> None:
    """Set all weights to the mean of their own and those of a model's folder. Raises SettingsError for other sizes."""
    other = ConditionedUNet(settings, vae.config.latent_channels)
    start.fill(other, folder)
    take_mean(model.unet, other.unet)
    take_mean(model.audio_encoder, other.audio_encoder)
    take_mean(vae, start.autoencoder(folder))


@torch.no_grad()
def take_mean(network: nn.Module, other: nn.Module) -> None:
    """Set the weights of `network` to the mean of its own and those of `other`. Raises SettingsError for other sizes.

    Of two points on one path of training, which the second began from the first, the mean is often better than either
    (Wortsman et al. 2022, https://arxiv.org/abs/2203.05482).
    """
    weights, others = network.state_dict(), other.state_dict()
    if {name: w.shape for name, w in weights.items()} != {name: w.shape for name, w in others.items()}:
        raise SettingsError(
            "the model to take the mean with has other sizes", fix="take the one that this training began from"
        )
    for name, weight in weights.items():
        if weight.is_floating_point():
            weight.lerp_(others[name].to(weight), 0.5)


def _half(module: nn.Module) -> dict[str, Tensor]:
    """Return the weights in fp16 on the CPU, without sinusoidal positions, which the loader computes."""
    weights = {k: v for k, v in module.state_dict().items() if not k.endswith("pos_encoder.pe")}
    return {name: tensor.detach().to("cpu", torch.float16).contiguous() for name, tensor in weights.items()}


def _vae_config(vae: Any) -> dict[str, Any]:
    return {name: value for name, value in vae.config.items() if not name.startswith("_")} | {
        "_class_name": "AutoencoderKL"
    }
