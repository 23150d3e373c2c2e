"""Load a model: read its files, fill its networks and put them on a device. Verify one without running it."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lipstream.errors import ModelError, SettingsError
from lipstream.models.autoencoder import Autoencoder, AutoencoderConfig
from lipstream.models.catalogue import ModelConfig, PinnedFile
from lipstream.models.checkpoint import check_archive, fill, leave_out_absent_motion_modules, read_tensors
from lipstream.models.digest import sha256
from lipstream.models.group_norm import replace_group_norms
from lipstream.models.locate import (
    ModelPaths,
    ModelStatus,
    describe_models,
    download_model,
    locate,
    read_config,
    read_config_values,
)
from lipstream.models.pointwise import use_pointwise_layers
from lipstream.models.prune import drop, read_list
from lipstream.models.quantized_layers import hold_float8, hold_int8, int8_tensors
from lipstream.models.small_vae import SmallVae, load_taesd
from lipstream.models.unet import UNet
from lipstream.models.upsample_conv import merge_enlargements, pays_on
from lipstream.models.whisper import AudioEncoder
from lipstream.runtime.allocator import freed_memory_given_back
from lipstream.runtime.device import Dtypes
from lipstream.settings import Quantize, VaeName

__all__ = [
    "Model",
    "ModelPaths",
    "ModelStatus",
    "Source",
    "VerifiedFile",
    "describe_models",
    "download_model",
    "load_model",
    "locate",
    "model_source",
    "read_audio_encoder",
    "read_config",
    "read_config_values",
    "read_unet",
    "read_vae",
    "vae_factor",
    "verify_model",
]

# Whisper's final norm and text decoder are in the published file and have no part here.
_WHISPER_UNUSED = ("ln_post.",)
_POSITIONS = "positional_embedding"
# Names of the autoencoder's attention in files written before diffusers 0.17, as sd-vae-ft-mse is.
_OLD_VAE_NAMES = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}


@dataclass(frozen=True)
class Source:
    """Where a model's networks are read from, on what device and how: each may be read again, in another dtype.

    quantize: with what the files hold taken into account. left_out: names of the U-Net's parts that are, and the file
    that lists them. vae_name: see RuntimeSettings.
    """

    config: ModelConfig
    paths: ModelPaths
    device: torch.device
    quantize: Quantize
    left_out: tuple[str, ...] = ()
    left_out_by: str = ""
    vae_name: VaeName = "own"

    def unet(self, dtype: torch.dtype) -> UNet:
        """Load the U-Net, ready to run. float8_e4m3fn: see Dtypes. Raises ModelError."""
        unet, tensors = read_unet(self.config, self.paths)
        is_float8 = dtype == torch.float8_e4m3fn
        self._fill(unet, tensors, self.paths.unet, torch.float16 if is_float8 else dtype)
        drop(unet, self.left_out, self.left_out_by)
        unet.fuse_projections()
        if is_float8:
            hold_float8(unet)
        return self._ready(unet)

    def vae(self, dtype: torch.dtype) -> Any:
        """Load the VAE, an Autoencoder or what stands for it, ready to run. Raises ModelError."""
        if self.vae_name == "own":
            return self._own_vae(dtype)
        taesd = load_taesd(self.config, self.device, dtype)
        vae = SmallVae(taesd, self._own_vae(dtype) if self.vae_name == "taesd-decoder" else None)
        _check_vae(self.config, vae)
        return self._ready(vae)

    def _own_vae(self, dtype: torch.dtype) -> Any:
        vae, tensors = read_vae(self.paths)
        _check_vae(self.config, vae)
        self._fill(vae, tensors, self.paths.vae_weights, dtype)
        if self.device.type != "cpu":  # a CPU's own group norm keeps channels-last and is faster
            replace_group_norms(vae)
        return self._ready(vae)

    def audio_encoder(self, dtype: torch.dtype) -> AudioEncoder:
        """Load the audio encoder, ready to run. Raises ModelError."""
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
        if self.device.type == "cpu":
            use_pointwise_layers(network)
        if pays_on(self.device):
            merge_enlargements(network)
        return network.eval().requires_grad_(False).to(memory_format=torch.channels_last)


@dataclass(frozen=True)
class Model:
    """A model ready to run: networks in evaluation mode on one device. vae: an Autoencoder or what stands for it."""

    config: ModelConfig
    unet: UNet
    vae: Any
    audio_encoder: AudioEncoder
    dtypes: Dtypes
    source: Source

    @property
    def quantized(self) -> str:
        """What the weights are held as: none, int8 or int8-dynamic."""
        return self.source.quantize

    @property
    def left_out(self) -> tuple[str, ...]:
        """Names of the U-Net's parts that are left out."""
        return self.source.left_out

    def latent_size(self, resolution: int) -> int:
        """Height and width of the latents of a crop of `resolution`. Raises SettingsError for one it can't encode."""
        factor = vae_factor(self.vae)
        if resolution % factor:
            raise SettingsError(
                f"resolution = {resolution}: {self.config.name} takes multiples of {factor}",
                fix=f"use its own, {self.config.resolution}",
            )
        return resolution // factor


def load_model(
    model: str | Path,
    device: torch.device,
    dtype: torch.dtype | Dtypes,
    *,
    quantize: Quantize = "none",
    pruned: str | Path | None = None,
    vae: VaeName = "own",
) -> Model:
    """Find, read and fill a model, every tensor accounted for. Raises ModelError, SettingsError.

    dtype: of all networks, or of each. quantize: see RuntimeSettings; "none" leaves int8 files as they are.
    pruned: the file that lists the parts of the U-Net to leave out. vae: see RuntimeSettings.
    """
    source = replace(model_source(model, device, quantize=quantize, pruned=pruned), vae_name=vae)
    dtypes = dtype if isinstance(dtype, Dtypes) else Dtypes(dtype, dtype, dtype)
    if dtypes.unet == torch.float8_e4m3fn and source.quantize != "none":
        raise SettingsError(
            f"fp8 and {source.quantize} weights both take the linear layers",
            file=source.config.name,
            fix="use one of the two",
        )
    if source.quantize == "int8-dynamic" and device.type == "mps":
        raise SettingsError("quantize = 'int8-dynamic': Metal has no product of integers", fix="use int8")
    with freed_memory_given_back():
        autoencoder, audio_encoder = source.vae(dtypes.vae), source.audio_encoder(dtypes.audio_encoder)
        return Model(source.config, source.unet(dtypes.unet), autoencoder, audio_encoder, dtypes, source)


def model_source(
    model: str | Path, device: torch.device, *, quantize: Quantize = "none", pruned: str | Path | None = None
) -> Source:
    """Find a model's files and say how they are to be read: see `load_model`. Raises ModelError."""
    config, folder = read_config(model)
    if config.exported is not None:
        raise ModelError(
            "holds exported networks, which torch does not compute",
            file=folder,
            fix="add --engine onnxruntime or --engine openvino",
        )
    left_out = () if pruned is None else read_list(pruned, config.name).names
    quantize = config.quantized if quantize == "none" else quantize
    return Source(config, locate(config, folder), device, quantize, left_out, str(pruned))


def read_unet(config: ModelConfig, paths: ModelPaths) -> tuple[UNet, dict[str, Tensor]]:
    """Read the U-Net on the meta device, and its tensors by its own names as the file holds them. Raises ModelError."""
    with torch.device("meta"):
        unet = UNet(config.unet)
    return unet, read_tensors(paths.unet, "state_dict")


def read_vae(paths: ModelPaths) -> tuple[Autoencoder, dict[str, Tensor]]:
    """Read the VAE, as `read_unet` does."""
    try:
        config = AutoencoderConfig.from_dict(json.loads(paths.vae_config.read_text("utf-8")))
        with torch.device("meta"):
            vae = Autoencoder(config)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ModelError(
            f"not an autoencoder's configuration ({error})", file=paths.vae_config, fix="download it again"
        ) from error
    return vae, {_new_vae_name(name): t for name, t in read_tensors(paths.vae_weights, None).items()}


def _new_vae_name(name: str) -> str:
    for old, new in _OLD_VAE_NAMES.items():
        if ".attentions." in name and old in name:
            return name.replace(old, new)
    return name


def vae_factor(vae: Any) -> int:
    """Return how many pixels of a VAE's images, across or down, there are to a latent."""
    return int(2 ** (len(vae.config.block_out_channels) - 1))


def _check_vae(config: ModelConfig, vae: Any) -> None:
    if vae.config.latent_channels != config.unet.out_channels:
        raise ModelError(
            f"an autoencoder of {vae.config.latent_channels} latent channels does not belong to a U-Net of"
            f" {config.unet.out_channels}",
            file=config.name,
            fix="use the autoencoder that the U-Net was trained with",
        )
    if config.resolution % vae_factor(vae):
        raise ModelError(
            f"resolution {config.resolution} is not a multiple of {vae_factor(vae)}",
            file=config.name,
            fix="correct it in lipstream.json",
        )
    if vae.config.shift_factor:
        raise ModelError(
            f"shift_factor {vae.config.shift_factor} of the autoencoder is not supported",
            file=config.name,
            fix="use an autoencoder without one, as Stable Diffusion 1.5's",
        )


def read_audio_encoder(config: ModelConfig, paths: ModelPaths) -> tuple[AudioEncoder, dict[str, Tensor]]:
    """Read the audio encoder, as `read_unet` does."""
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


@dataclass(frozen=True)
class VerifiedFile:
    """A file of weights that was read completely: its tensors belong to the model and are finite.

    is_published: its SHA-256 is that of the published file.
    """

    path: Path
    tensors: int
    size_bytes: int
    is_published: bool


def verify_model(model: str | Path) -> list[VerifiedFile]:
    """Check every file of a named model or a folder on this machine. Raises ModelError for the first fault.

    A file of a published one's size is compared by SHA-256, any other torch checkpoint with its archive's checksums.
    """
    config, folder = read_config(model)
    if config.exported is not None and folder is not None:
        return [VerifiedFile(path, 0, path.stat().st_size, False) for path in config.exported.verify(folder)]
    paths = locate(config, folder, download=False)
    load_model(model, torch.device("meta"), torch.float32)  # maps the files: reads names and shapes, no weights
    pinned = {} if config.hub is None else config.hub.pinned
    if folder is None:
        _is_published(paths.vae_config, pinned.get("vae_config"), must_be=True)
    return [
        _verified(path, wrapper, pinned.get(role), must_be=folder is None)
        for role, path, wrapper in (
            ("unet", paths.unet, "state_dict"),
            ("audio_encoder", paths.audio_encoder, "model_state_dict"),
            ("vae_weights", paths.vae_weights, None),
        )
    ]


def _verified(path: Path, wrapper: str | None, pin: PinnedFile | None, *, must_be: bool) -> VerifiedFile:
    is_published = _is_published(path, pin, must_be=must_be)
    if not is_published:
        check_archive(path)
    tensors = read_tensors(path, wrapper)
    if not is_published:
        _check_finite(tensors, path)
    return VerifiedFile(path, len(tensors), path.stat().st_size, is_published)


def _is_published(path: Path, pin: PinnedFile | None, *, must_be: bool) -> bool:
    """Return whether the file has the published size and SHA-256. Raises ModelError where it `must_be` and has not."""
    if pin is not None and path.stat().st_size == pin.size_bytes and sha256(path) == pin.sha256:
        return True
    if must_be and pin is not None:
        raise ModelError(
            "damaged: its SHA-256 is not the published one", file=path, fix="delete it and download it again"
        )
    return False


def _check_finite(tensors: dict[str, Tensor], path: Path) -> None:
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise ModelError(f"tensor {name} holds values that are not numbers", file=path, fix="download it again")
