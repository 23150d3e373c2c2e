"""Begin training from a model that `sync` runs, instead of from nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from lipstream.errors import SettingsError
from lipstream.models.load import locate, read_audio_encoder, read_config, read_unet, read_vae
from lipstream_lab.train.unet import ConditionedUNet

FOLDER = "start"
"""Of the copied model, in the work folder."""


def copy_model(model: str, work: Path) -> Path:
    """Copy a model's folder to where the stages find it; return the copy. Raises SettingsError for a published one."""
    target = work / FOLDER
    shutil.copytree(folder_of(model), target, dirs_exist_ok=True)
    return target


def folder_of(model: str) -> Path:
    """Return where a model lies. Raises SettingsError for a published one."""
    _, folder = read_config(model)
    if folder is None:
        raise SettingsError(f"{model} is not a folder", fix="take tiny, or what `train bundle` wrote")
    return folder


def autoencoder(folder: Path) -> Any:
    """Return the VAE of a model's folder, float32, with its own scaling factor."""
    config, _ = read_config(folder)
    paths = locate(config, folder)
    vae: Any = AutoencoderKL.from_config(json.loads(paths.vae_config.read_text("utf-8")))  # type: ignore[no-untyped-call]
    vae.load_state_dict(_float32(read_vae(paths)[1]), assign=True)
    return vae.to(memory_format=torch.channels_last)


def audio_encoder(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of a model's audio encoder, float32."""
    config, _ = read_config(folder)
    return _float32(read_audio_encoder(config, locate(config, folder))[1])


def fill(model: ConditionedUNet, folder: Path) -> None:
    """Load the U-Net and the audio encoder of a model's folder into `model`. Raises SettingsError for other sizes."""
    config, _ = read_config(folder)
    paths = locate(config, folder)
    try:
        absent, _ = model.unet.load_state_dict(_float32(read_unet(config, paths)[1]), strict=False)
        model.audio_encoder.load_state_dict(audio_encoder(folder))
    except RuntimeError as error:
        raise SettingsError(f"the model to begin from has other sizes ({error})", file=folder) from error
    if any(not name.endswith("pos_encoder.pe") for name in absent):
        raise SettingsError("the model to begin from lacks tensors", file=folder)


def _float32(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.float() for name, tensor in tensors.items()}
