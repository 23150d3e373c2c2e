"""All file access of the models: finding, downloading, checking and filling them."""

from __future__ import annotations

import json
import logging
import pickle
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from lipstream.errors import ModelError, SettingsError
from lipstream.models import hub
from lipstream.models.catalogue import BUNDLED, CONFIG_NAME, NAMES, PUBLISHED, ModelConfig
from lipstream.models.unet import UNet
from lipstream.models.unet_layers import sinusoidal_positions
from lipstream.models.whisper import AudioEncoder

logger = logging.getLogger(__name__)

# Whisper's final norm and text decoder are in the published file and have no part here.
_WHISPER_UNUSED = ("ln_post.",)
_POSITIONS = ".pos_encoder.pe"
# Names of the autoencoder's attention in files written before diffusers 0.17, as sd-vae-ft-mse is.
_OLD_VAE_NAMES = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}


@dataclass(frozen=True)
class Model:
    """A model ready to run: networks in evaluation mode on one device, in one dtype. vae: AutoencoderKL."""

    config: ModelConfig
    unet: UNet
    vae: Any
    audio_encoder: AudioEncoder

    def latent_size(self, resolution: int) -> int:
        """Height and width of the latents of a crop of `resolution`. Raises SettingsError for one it can't encode."""
        factor = _vae_factor(self.vae)
        if resolution % factor:
            raise SettingsError(
                f"resolution = {resolution}: {self.config.name} takes multiples of {factor}; its own is"
                f" {self.config.resolution}"
            )
        return resolution // factor


@dataclass(frozen=True)
class ModelPaths:
    """The files of one model on this machine."""

    unet: Path
    audio_encoder: Path
    vae_config: Path
    vae_weights: Path


def read_config(model: str | Path) -> tuple[ModelConfig, Path | None]:
    """The configuration of a named model or a folder, and the folder its files lie in (None: on the hub).

    A folder's lipstream.json may name another model as its `base` and give only what differs.
    Raises ModelError for an unknown name, or a folder without a readable lipstream.json.
    """
    folder = _bundled_folder(str(model)) if str(model) in BUNDLED else None
    if folder is None and str(model) not in NAMES:
        folder = Path(model)
    if folder is None:
        words, origin = _published_words(str(model)), str(model)
    else:
        words, origin = _folder_words(folder, str(model)), str(folder / CONFIG_NAME)
    return ModelConfig.from_dict(words, origin), folder


def _bundled_folder(name: str) -> Path:
    return Path(str(resources.files("lipstream.models") / "bundled" / name))


def _published_words(name: str) -> dict[str, Any]:
    text = (resources.files("lipstream.models") / "configs" / f"{name}.json").read_text("utf-8")
    return _with_base(json.loads(text))


def _with_base(words: dict[str, Any]) -> dict[str, Any]:
    base = words.pop("base", None)
    if base is None:
        return words
    if base not in PUBLISHED:
        raise ModelError(f"base {base!r} is not one of {', '.join(PUBLISHED)}")
    return {**_published_words(base), **words}


def _folder_words(folder: Path, asked: str) -> dict[str, Any]:
    if not folder.is_dir() and asked in BUNDLED:
        raise ModelError(f"{folder}: missing; lipstream is not installed whole, install it again")
    if not folder.is_dir():
        raise ModelError(f"{asked}: neither a folder nor one of the models {', '.join(NAMES)}")
    path = folder / CONFIG_NAME
    if not path.is_file():
        raise ModelError(
            f"{folder}: has no {CONFIG_NAME}; for the published files put one there that says which they are:"
            ' {"base": "latentsync-1.6"}'
        )
    try:
        words = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(words, dict):
        raise ModelError(f"{path}: must hold a JSON object")
    return _with_base(words)


def locate(config: ModelConfig, folder: Path | None, *, download: bool = True) -> ModelPaths:
    """The model's files: in its folder, else in the hub's cache, else downloaded into it.

    Raises ModelError that names the missing file (folder), or the mend when the hub can't be reached.
    """
    files = config.files
    names = [files.unet, files.audio_encoder, files.vae_config, files.vae_weights]
    if folder is not None:
        for name in names:
            if not (folder / name).is_file():
                raise ModelError(f"{folder / name}: missing; the model {config.name} cannot be loaded without it")
        return ModelPaths(*(folder / name for name in names))
    assert config.hub is not None
    own, vae = config.hub.repo, config.hub.vae_repo
    sources = [(own, names[0]), (own, names[1])] + [(vae, Path(name).name) for name in names[2:]]
    return ModelPaths(*(hub.fetch(repo, name, config.name, download=download) for repo, name in sources))


@dataclass(frozen=True)
class ModelStatus:
    """A named model, its resolution in px, and where its files are, or the mend."""

    name: str
    resolution: int
    is_here: bool
    place: str


def describe_models() -> list[ModelStatus]:
    """The named models and which of them are on this machine. Asks no network.

    Raises ModelError only where lipstream itself is not installed whole.
    """
    found = []
    for name in NAMES:
        config, folder = read_config(name)
        try:
            paths = locate(config, folder, download=False)
        except ModelError:
            place = f"not on this machine; lipstream models download {name}"
            found.append(ModelStatus(name, config.resolution, False, place))
        else:
            place = "bundled" if name in BUNDLED else str(paths.unet.parent)
            found.append(ModelStatus(name, config.resolution, True, place))
    return found


@dataclass(frozen=True)
class VerifiedFile:
    """A file of weights that was read whole: its tensors belong to the model and are finite."""

    path: Path
    tensors: int
    size_bytes: int


def verify_model(model: str | Path) -> list[VerifiedFile]:
    """Check every file of a model on this machine without running it. Raises ModelError for the first fault."""
    config, folder = read_config(model)
    paths = locate(config, folder, download=False)
    load_model(model, torch.device("meta"), torch.float32)
    verified = []
    for path, wrapper in (
        (paths.unet, "state_dict"),
        (paths.audio_encoder, "model_state_dict"),
        (paths.vae_weights, None),
    ):
        tensors = _read_tensors(path, wrapper)
        for name, tensor in tensors.items():
            if not bool(torch.isfinite(tensor).all()):
                raise ModelError(f"{path}: tensor {name} holds values that are not numbers; download the file again")
        verified.append(VerifiedFile(path, len(tensors), path.stat().st_size))
    return verified


def load_model(model: str | Path, device: torch.device, dtype: torch.dtype) -> Model:
    """Find, read and fill a model, every tensor accounted for. Raises ModelError."""
    config, folder = read_config(model)
    paths = locate(config, folder)
    vae = _load_vae(paths, device, dtype)
    _check_vae(config, vae)
    audio_encoder = _load_audio_encoder(config, paths.audio_encoder, device, dtype)
    with torch.device("meta"):
        unet = UNet(config.unet)
    _fill(unet, _read_tensors(paths.unet, "state_dict"), paths.unet, device, dtype)
    unet.fuse_projections()
    for module in (unet, vae, audio_encoder):
        module.eval().requires_grad_(False)
    unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    vae.to(memory_format=torch.channels_last)
    return Model(config, unet, vae, audio_encoder)


def _load_vae(paths: ModelPaths, device: torch.device, dtype: torch.dtype) -> Any:
    from diffusers import AutoencoderKL  # costs a second or two: only where a model is really loaded

    try:
        words = json.loads(paths.vae_config.read_text("utf-8"))
        with torch.device("meta"):
            vae: Any = AutoencoderKL.from_config(words)  # type: ignore[no-untyped-call]
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(f"{paths.vae_config}: not an autoencoder's configuration ({error})") from error
    tensors = {_new_vae_name(name): t for name, t in _read_tensors(paths.vae_weights, None).items()}
    _fill(vae, tensors, paths.vae_weights, device, dtype)
    return vae


def _new_vae_name(name: str) -> str:
    for old, new in _OLD_VAE_NAMES.items():
        if ".attentions." in name and old in name:
            return name.replace(old, new)
    return name


def _vae_factor(vae: Any) -> int:
    return int(2 ** (len(vae.config.block_out_channels) - 1))


def _check_vae(config: ModelConfig, vae: Any) -> None:
    if vae.config.latent_channels != config.unet.out_channels:
        raise ModelError(
            f"{config.name}: an autoencoder of {vae.config.latent_channels} latent channels does not belong to a"
            f" U-Net of {config.unet.out_channels}"
        )
    if config.resolution % _vae_factor(vae):
        raise ModelError(f"{config.name}: resolution {config.resolution} is not a multiple of {_vae_factor(vae)}")


def _load_audio_encoder(config: ModelConfig, path: Path, device: torch.device, dtype: torch.dtype) -> AudioEncoder:
    tensors = _read_tensors(path, "model_state_dict")
    prefix = "encoder."
    if any(name.startswith(prefix) for name in tensors):  # OpenAI's file, which holds a text decoder too
        tensors = {name[len(prefix) :]: t for name, t in tensors.items() if name.startswith(prefix)}
    tensors = {name: t for name, t in tensors.items() if not name.startswith(_WHISPER_UNUSED)}
    with torch.device("meta"):
        encoder = AudioEncoder(config.audio_encoder)
    _fill(encoder, tensors, path, device, dtype)
    return encoder


def _read_tensors(path: Path, wrapper: str | None) -> dict[str, Tensor]:
    """Read a .safetensors file, or a torch checkpoint without running any code in it.

    wrapper: the word under which a torch checkpoint holds its tensors. Raises ModelError.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # mmap keeps a 5 GB checkpoint from being in memory twice; files of torch before 1.6 cannot be mapped.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (OSError, ValueError, RuntimeError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"{path}: not a readable checkpoint ({reason}); download it again") from error
    if isinstance(content, Mapping) and wrapper in content:
        content = content[wrapper]
    tensors = {k: v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, Mapping) else {}
    if not tensors:
        raise ModelError(f"{path}: holds no tensors")
    return tensors


def _fill(
    module: nn.Module, tensors: Mapping[str, Tensor], path: Path, device: torch.device, dtype: torch.dtype
) -> None:
    """Give a module built on the meta device its tensors, every one accounted for. Raises ModelError."""
    _leave_out_absent_motion_modules(module, tensors, path)
    filled: dict[str, Tensor] = {}
    missing = []
    for name, wanted in module.state_dict().items():
        tensor = tensors.get(name)
        if tensor is None and name.endswith(_POSITIONS):
            tensor = sinusoidal_positions(*wanted.shape[1:])
        if tensor is None:
            missing.append(name)
        elif tensor.shape != wanted.shape:
            raise ModelError(
                f"{path}: tensor {name} is {_shape(tensor)}, the model's configuration needs {_shape(wanted)}"
            )
        else:
            filled[name] = tensor.to(device=device, dtype=dtype)
    if missing:
        raise ModelError(f"{path}: {len(missing)} missing tensors: {_listing(missing)}")
    unexpected = [name for name in tensors if name not in filled]
    if unexpected:
        logger.warning("%s: %d unexpected tensors, not used: %s", path, len(unexpected), _listing(unexpected))
    module.load_state_dict(filled, strict=True, assign=True)


def _leave_out_absent_motion_modules(module: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    # The published code loads loosely, and a motion module that was never filled is an identity there (its last
    # layer starts at zero): the same picture comes from not computing it.
    for block_name, block in module.named_modules():
        motion_modules = getattr(block, "motion_modules", {})
        for index in list(motion_modules):
            prefix = f"{block_name}.motion_modules.{index}."
            if not any(name.startswith(prefix) for name in tensors):
                logger.warning("%s: no motion module %s; left out of the model", path, prefix[:-1])
                del motion_modules[index]


def _shape(tensor: Tensor) -> str:
    return " x ".join(str(n) for n in tensor.shape) or "a scalar"


def _listing(names: Iterable[str], most: int = 8) -> str:
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
