"""A model's folder with int8 weights: smaller files that `sync --model FOLDER` runs as `--quantize int8` would."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from lipstream.errors import ModelError
from lipstream.models.catalogue import CONFIG_NAME, ModelConfig, ModelFiles
from lipstream.models.checkpoint import leave_out_absent_motion_modules
from lipstream.models.load import VerifiedFile, read_audio_encoder, read_unet, read_vae, verify_model
from lipstream.models.locate import ModelPaths, locate, read_config_values
from lipstream.models.quantized_layers import int8_tensors
from lipstream.models.whole_folder import whole_folder

_FILES = ModelFiles(unet="unet.safetensors", audio_encoder="audio_encoder.safetensors", vae="vae")


def write_quantized(model: str | Path, folder: Path) -> list[VerifiedFile]:
    """Write a named model or a folder as an int8 model into `folder`, whole or not at all; return its verified files.

    Weights are rounded from what the files hold, one network in memory at a time. All else is kept as it is.
    Raises ModelError, and OutputError for a folder that exists or cannot be written.
    """
    values, origin, source = read_config_values(model)
    config = ModelConfig.from_dict(values, origin)
    if config.quantized != "none":
        raise ModelError(
            f"its weights are {config.quantized} already", file=origin, fix="name the model it was made from"
        )
    with whole_folder(folder) as partial:
        _write(config, values, locate(config, source), partial)
        verify_model(partial)
    return verify_model(folder)


def _write(config: ModelConfig, values: Mapping[str, Any], paths: ModelPaths, folder: Path) -> None:
    (folder / _FILES.vae).mkdir(parents=True)
    _save(*read_unet(config, paths), folder / _FILES.unet, paths.unet)
    _save(*read_audio_encoder(config, paths), folder / _FILES.audio_encoder, paths.audio_encoder)
    _save(*read_vae(paths), folder / _FILES.vae_weights, paths.vae_weights)
    shutil.copyfile(paths.vae_config, folder / _FILES.vae_config)
    (folder / CONFIG_NAME).write_text(json.dumps(_values(values)) + "\n", "utf-8")


def _values(values: Mapping[str, Any]) -> dict[str, Any]:
    files = {"unet": _FILES.unet, "audio_encoder": _FILES.audio_encoder, "vae": _FILES.vae}
    return {**values, "name": f"{values['name']}-int8", "files": files, "hub": None, "quantized": "int8"}


def _save(module: nn.Module, tensors: dict[str, Tensor], path: Path, origin: Path) -> None:
    leave_out_absent_motion_modules(module, tensors, origin)
    known = module.state_dict()
    belongs = {name: tensor for name, tensor in tensors.items() if name in known}
    save_file({name: t.contiguous() for name, t in int8_tensors(module, belongs).items()}, path)
    path.chmod(0o644)  # safetensors writes for the owner alone
