"""A model's folder with int8 weights: smaller files that `sync --model FOLDER` runs as `--quantize int8` would."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from lipstream.errors import ModelError, OutputError
from lipstream.models.catalogue import CONFIG_NAME, ModelConfig, ModelFiles
from lipstream.models.checkpoint import leave_out_absent_motion_modules
from lipstream.models.eight_bit import int8_tensors
from lipstream.models.load import (
    VerifiedFile,
    locate,
    read_audio_encoder,
    read_unet,
    read_vae,
    read_words,
    verify_model,
)

_FILES = ModelFiles(unet="unet.safetensors", audio_encoder="audio_encoder.safetensors", vae="vae")


def write_quantized(model: str | Path, folder: Path) -> list[VerifiedFile]:
    """Write a named model or a folder as an int8 model into `folder`, whole or not at all; its files, verified.

    Weights are rounded from what the files hold, one network in memory at a time. All else is kept as it is.
    Raises ModelError, and OutputError for a folder that exists or cannot be written.
    """
    words, origin, source = read_words(model)
    config = ModelConfig.from_dict(words, origin)
    if config.quantized != "none":
        raise ModelError(f"{origin}: its weights are {config.quantized} already; name the model it was made from")
    if folder.exists():
        raise OutputError(f"{folder}: already exists; choose another folder with -o")
    paths = locate(config, source)
    partial = folder.with_name(f".{folder.name}.part")
    try:
        (partial / _FILES.vae).mkdir(parents=True)
        _save(*read_unet(config, paths), partial / _FILES.unet, paths.unet)
        _save(*read_audio_encoder(config, paths), partial / _FILES.audio_encoder, paths.audio_encoder)
        _save(*read_vae(paths), partial / _FILES.vae_weights, paths.vae_weights)
        shutil.copyfile(paths.vae_config, partial / _FILES.vae_config)
        (partial / CONFIG_NAME).write_text(json.dumps(_words(words)) + "\n", "utf-8")
        verify_model(partial)
        partial.rename(folder)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written ({error}); choose another folder with -o") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return verify_model(folder)


def _words(words: Mapping[str, Any]) -> dict[str, Any]:
    files = {"unet": _FILES.unet, "audio_encoder": _FILES.audio_encoder, "vae": _FILES.vae}
    return {**words, "name": f"{words['name']}-int8", "files": files, "hub": None, "quantized": "int8"}


def _save(module: nn.Module, tensors: dict[str, Tensor], path: Path, origin: Path) -> None:
    leave_out_absent_motion_modules(module, tensors, origin)
    known = module.state_dict()
    belongs = {name: tensor for name, tensor in tensors.items() if name in known}
    save_file({name: t.contiguous() for name, t in int8_tensors(module, belongs).items()}, path)
    path.chmod(0o644)  # safetensors writes for the owner alone
