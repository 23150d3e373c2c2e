"""The models: finding, downloading, checking and loading them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lipstream.errors import ModelError, SettingsError
from lipstream.models import hub
from lipstream.models.catalogue import CONFIG_NAME, ModelConfig
from lipstream.models.checkpoint import fill, leave_out_absent_motion_modules, read_tensors
from lipstream.models.eight_bit import hold_float8, hold_int8, int8_tensors
from lipstream.models.enlarging import merge_enlargements, pays_on
from lipstream.models.group_norm import replace_group_norms
from lipstream.models.names import BUNDLED, NAMES, PUBLISHED
from lipstream.models.prune import drop, read_list
from lipstream.models.unet import UNet
from lipstream.models.whisper import AudioEncoder
from lipstream.runtime.device import Dtypes
from lipstream.settings import Quantize

# Whisper's final norm and text decoder are in the published file and have no part here.
_WHISPER_UNUSED = ("ln_post.",)
_POSITIONS = "positional_embedding"
# Names of the autoencoder's attention in files written before diffusers 0.17, as sd-vae-ft-mse is.
_OLD_VAE_NAMES = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}


@dataclass(frozen=True)
class ModelPaths:
    """The files of one model on this machine."""

    unet: Path
    audio_encoder: Path
    vae_config: Path
    vae_weights: Path


@dataclass(frozen=True)
class Source:
    """Where a model's networks are read from, on what device and how: each may be read again, in another dtype.

    quantize: with what the files hold taken into account. left_out: names of the U-Net's parts that are, and the file
    that lists them.
    """

    config: ModelConfig
    paths: ModelPaths
    device: torch.device
    quantize: Quantize
    left_out: tuple[str, ...] = ()
    left_out_by: str = ""

    def unet(self, dtype: torch.dtype) -> UNet:
        """The U-Net, ready to run. float8_e4m3fn: see Dtypes. Raises ModelError."""
        unet, tensors = read_unet(self.config, self.paths)
        is_float8 = dtype == torch.float8_e4m3fn
        self._fill(unet, tensors, self.paths.unet, torch.float16 if is_float8 else dtype)
        drop(unet, self.left_out, self.left_out_by)
        unet.fuse_projections()
        if is_float8:
            hold_float8(unet)
        return self._ready(unet)

    def vae(self, dtype: torch.dtype) -> Any:
        """The VAE, diffusers' AutoencoderKL, ready to run. Raises ModelError."""
        vae, tensors = read_vae(self.paths)
        _check_vae(self.config, vae)
        self._fill(vae, tensors, self.paths.vae_weights, dtype)
        if self.device.type != "cpu":  # a CPU's own group norm keeps channels-last and is faster
            replace_group_norms(vae)
        return self._ready(vae)

    def audio_encoder(self, dtype: torch.dtype) -> AudioEncoder:
        """The audio encoder, ready to run. Raises ModelError."""
        encoder, tensors = read_audio_encoder(self.config, self.paths)
        self._fill(encoder, tensors, self.paths.audio_encoder, dtype)
        return encoder.eval().requires_grad_(False)

    def _fill(self, module: nn.Module, tensors: dict[str, Tensor], path: Path, dtype: torch.dtype) -> None:
        leave_out_absent_motion_modules(module, tensors, path)
        if self.quantize != "none":
            if self.config.quantized == "none":
                tensors = int8_tensors(module, tensors)
            hold_int8(module, dynamic=self.quantize == "int8-dynamic")
        fill(module, tensors, path, self.device, dtype)

    def _ready(self, network: Any) -> Any:
        if pays_on(self.device):
            merge_enlargements(network)
        return network.eval().requires_grad_(False).to(memory_format=torch.channels_last)


@dataclass(frozen=True)
class Model:
    """A model ready to run: networks in evaluation mode on one device. vae: AutoencoderKL."""

    config: ModelConfig
    unet: UNet
    vae: Any
    audio_encoder: AudioEncoder
    dtypes: Dtypes
    source: Source

    def latent_size(self, resolution: int) -> int:
        """Height and width of the latents of a crop of `resolution`. Raises SettingsError for one it can't encode."""
        factor = vae_factor(self.vae)
        if resolution % factor:
            raise SettingsError(
                f"resolution = {resolution}: {self.config.name} takes multiples of {factor}; its own is"
                f" {self.config.resolution}"
            )
        return resolution // factor


def read_config(model: str | Path) -> tuple[ModelConfig, Path | None]:
    """The configuration of a named model or a folder, and the folder its files lie in (None: on the hub).

    A folder's lipstream.json may name another model as its `base` and give only what differs.
    Raises ModelError for an unknown name, or a folder without a readable lipstream.json.
    """
    words, origin, folder = read_words(model)
    return ModelConfig.from_dict(words, origin), folder


def read_words(model: str | Path) -> tuple[dict[str, Any], str, Path | None]:
    """The words of `read_config`'s configuration, where they come from, and the folder. Raises ModelError."""
    folder = _bundled_folder(str(model)) if str(model) in BUNDLED else None
    if folder is None and str(model) not in NAMES:
        folder = Path(model)
    if folder is None:
        return _published_words(str(model)), str(model), None
    return _folder_words(folder, str(model)), str(folder / CONFIG_NAME), folder


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
        tensors = read_tensors(path, wrapper)
        for name, tensor in tensors.items():
            if not bool(torch.isfinite(tensor).all()):
                raise ModelError(f"{path}: tensor {name} holds values that are not numbers; download the file again")
        verified.append(VerifiedFile(path, len(tensors), path.stat().st_size))
    return verified


def load_model(
    model: str | Path,
    device: torch.device,
    dtype: torch.dtype | Dtypes,
    *,
    quantize: Quantize = "none",
    pruned: str | Path | None = None,
) -> Model:
    """Find, read and fill a model, every tensor accounted for. Raises ModelError, SettingsError.

    dtype: of all networks, or of each. quantize: see RuntimeSettings; "none" leaves int8 files as they are.
    pruned: the file that lists the parts of the U-Net to leave out.
    """
    config, folder = read_config(model)
    if quantize == "none":
        quantize = config.quantized
    dtypes = dtype if isinstance(dtype, Dtypes) else Dtypes(dtype, dtype, dtype)
    if dtypes.unet == torch.float8_e4m3fn and quantize != "none":
        raise SettingsError(f"{config.name}: fp8 and {quantize} weights both take the linear layers; use one")
    if quantize == "int8-dynamic" and device.type == "mps":
        raise SettingsError("quantize = 'int8-dynamic': Metal has no product of integers; use int8")
    left_out = () if pruned is None else read_list(pruned, config.name).names
    source = Source(config, locate(config, folder), device, quantize, left_out, str(pruned))
    vae, audio_encoder = source.vae(dtypes.vae), source.audio_encoder(dtypes.audio_encoder)
    return Model(config, source.unet(dtypes.unet), vae, audio_encoder, dtypes, source)


def read_unet(config: ModelConfig, paths: ModelPaths) -> tuple[UNet, dict[str, Tensor]]:
    """The U-Net on the meta device, and its tensors by its own names, as the file holds them. Raises ModelError."""
    with torch.device("meta"):
        unet = UNet(config.unet)
    return unet, read_tensors(paths.unet, "state_dict")


def read_vae(paths: ModelPaths) -> tuple[Any, dict[str, Tensor]]:
    """The VAE, as `read_unet`."""
    from diffusers import AutoencoderKL  # costs a second or two: only where a model is really loaded

    try:
        words = json.loads(paths.vae_config.read_text("utf-8"))
        with torch.device("meta"):
            vae: Any = AutoencoderKL.from_config(words)  # type: ignore[no-untyped-call]
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(f"{paths.vae_config}: not an autoencoder's configuration ({error})") from error
    return vae, {_new_vae_name(name): t for name, t in read_tensors(paths.vae_weights, None).items()}


def _new_vae_name(name: str) -> str:
    for old, new in _OLD_VAE_NAMES.items():
        if ".attentions." in name and old in name:
            return name.replace(old, new)
    return name


def vae_factor(vae: Any) -> int:
    """How many pixels of a VAE's images, across or down, there are to a latent."""
    return int(2 ** (len(vae.config.block_out_channels) - 1))


def _check_vae(config: ModelConfig, vae: Any) -> None:
    if vae.config.latent_channels != config.unet.out_channels:
        raise ModelError(
            f"{config.name}: an autoencoder of {vae.config.latent_channels} latent channels does not belong to a"
            f" U-Net of {config.unet.out_channels}"
        )
    if config.resolution % vae_factor(vae):
        raise ModelError(f"{config.name}: resolution {config.resolution} is not a multiple of {vae_factor(vae)}")


def read_audio_encoder(config: ModelConfig, paths: ModelPaths) -> tuple[AudioEncoder, dict[str, Tensor]]:
    """The audio encoder, as `read_unet`."""
    tensors = read_tensors(paths.audio_encoder, "model_state_dict")
    prefix = "encoder."
    if any(name.startswith(prefix) for name in tensors):  # OpenAI's file, which holds a text decoder too
        tensors = {name[len(prefix) :]: t for name, t in tensors.items() if name.startswith(prefix)}
    sizes, positions = config.audio_encoder, tensors.get(_POSITIONS)
    if positions is not None and len(positions) == sizes.position_period:
        whole_periods = -(-sizes.n_audio_ctx // len(positions))
        tensors[_POSITIONS] = positions.repeat(whole_periods, 1)[: sizes.n_audio_ctx]
    with torch.device("meta"):
        encoder = AudioEncoder(sizes)
    return encoder, {name: t for name, t in tensors.items() if not name.startswith(_WHISPER_UNUSED)}
