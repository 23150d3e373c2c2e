"""What belongs to a model's weights: the record behind lipstream.json, read strictly."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeVar, get_args

from lipstream.errors import ModelError
from lipstream.models.exported import ExportedNetworks
from lipstream.models.names import BUNDLED, NAMES, PUBLISHED
from lipstream.models.unet_config import UNetConfig
from lipstream.models.whisper import AudioEncoderConfig
from lipstream.settings import MatchColor, Texture

__all__ = ["BUNDLED", "CONFIG_NAME", "FORMAT", "NAMES", "PUBLISHED", "Hub", "ModelConfig", "ModelFiles", "PinnedFile"]

CONFIG_NAME = "lipstream.json"
FORMAT = 1
EXAMPLE = '{"base": "latentsync-1.6"}'

_T = TypeVar("_T")
# Keys of a lipstream.json that are not read here: `base` is resolved before, the others are for people.
_OTHER_KEYS = ("format", "base", "mask", "license", "notes")


@dataclass(frozen=True)
class ModelFiles:
    """Where the weights lie below a model's folder; `vae` is a folder in diffusers' layout."""

    unet: str
    audio_encoder: str
    vae: str

    @property
    def vae_config(self) -> str:
        """The autoencoder's configuration."""
        return f"{self.vae}/config.json"

    @property
    def vae_weights(self) -> str:
        """The autoencoder's weights."""
        return f"{self.vae}/diffusion_pytorch_model.safetensors"


@dataclass(frozen=True)
class PinnedFile:
    """Size and SHA-256 (hex) of a published file."""

    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Hub:
    """The hub repositories of a model and of its autoencoder.

    revision, vae_revision: the commits that are downloaded. pinned: the published files by role (unet, audio_encoder,
    vae_config, vae_weights); a role that is absent is not checked.
    """

    repo: str
    vae_repo: str
    revision: str = "main"
    vae_revision: str = "main"
    pinned: Mapping[str, PinnedFile] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Hub:
        """Read the `hub` object of a lipstream.json. Raises TypeError."""
        pinned = {role: PinnedFile(**pin) for role, pin in values.get("pinned", {}).items()}
        return cls(**{**values, "pinned": pinned})


@dataclass(frozen=True)
class ModelConfig:
    """All that belongs to a model's weights.

    resolution: of the square crop, px. num_frames: of a window. num_inference_steps and guidance_scale: the model's
    own. scheduler: arguments of diffusers' DDIMScheduler. mask_polygon_xy: the generated region on a mask_size square.
    quantized: what the files hold the weights as. texture, match_color: as in SyncSettings, the model's own choice.
    exported: the networks as ONNX graphs, in place of torch's files.
    """

    name: str
    resolution: int
    num_frames: int
    num_inference_steps: int
    guidance_scale: float
    scheduler: Mapping[str, Any]
    unet: UNetConfig
    audio_encoder: AudioEncoderConfig
    mask_size: int
    mask_polygon_xy: tuple[tuple[float, float], ...]
    files: ModelFiles
    hub: Hub | None
    quantized: Literal["none", "int8"]
    texture: Texture
    match_color: MatchColor
    exported: ExportedNetworks | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], origin: str) -> ModelConfig:
        """Read the contents of a lipstream.json. Raises ModelError that names `origin` and the key at fault."""
        if values.get("format") != FORMAT:
            raise ModelError(
                f"format {values.get('format')!r} is not known; this lipstream reads {FORMAT}",
                file=origin,
                fix=f"for the published files write {EXAMPLE}",
            )
        _refuse_unknown_keys(values, origin)
        read = _Reader(values, origin)
        mask = _Reader(read("mask", dict, "an object"), origin, "mask.")
        config = cls(
            name=read("name", str, "a text"),
            resolution=read("resolution", _whole, "a whole number"),
            num_frames=read("num_frames", _whole, "a whole number"),
            num_inference_steps=read("num_inference_steps", _whole, "a whole number"),
            guidance_scale=read("guidance_scale", _real, "a number"),
            scheduler=read("scheduler", dict, "an object"),
            unet=read("unet", UNetConfig.from_dict, "an object of the U-Net's settings"),
            audio_encoder=read("audio_encoder", AudioEncoderConfig.from_dict, "an object of the encoder's sizes"),
            mask_size=mask("size", _whole, "a whole number"),
            mask_polygon_xy=mask("polygon_xy", _points, "a list of [x, y]"),
            files=read("files", lambda paths: ModelFiles(**paths), "an object of unet, audio_encoder and vae"),
            hub=read("hub", Hub.from_dict, "an object of repo and vae_repo") if values.get("hub") else None,
            quantized=values.get("quantized", "none"),
            texture=values.get("texture", "generated"),
            match_color=values.get("match_color", "off"),
            exported=read("exported", ExportedNetworks.from_dict, "what an export writes")
            if values.get("exported")
            else None,
        )
        config._check(origin)
        return config

    def _check(self, origin: str) -> None:
        if self.quantized not in ("none", "int8"):
            raise ModelError(
                f"quantized {self.quantized!r} is not known; this lipstream reads none and int8", file=origin
            )
        for name, choices in (("texture", Texture), ("match_color", MatchColor)):
            if getattr(self, name) not in get_args(choices):
                expected = ", ".join(get_args(choices))
                raise ModelError(f"{name} {getattr(self, name)!r} is not one of {expected}", file=origin)
        channels = self.unet.out_channels
        if self.unet.in_channels != 3 * channels + 1:
            raise ModelError(
                f"{self.unet.in_channels} U-Net input channels do not belong to {channels} latent channels;"
                f" {3 * channels + 1} do (noisy, mask, masked crop, whole crop)",
                file=origin,
            )
        if self.unet.cross_attention_dim != self.audio_encoder.n_audio_state:
            raise ModelError(
                f"cross_attention_dim {self.unet.cross_attention_dim} does not belong to an audio encoder of"
                f" {self.audio_encoder.n_audio_state} channels",
                file=origin,
            )
        motion = self.unet.motion_module_kwargs
        if self.num_frames < 1 or self.num_frames > motion.temporal_position_encoding_max_len:
            raise ModelError(
                f"num_frames {self.num_frames} is not from 1 to the motion modules' positions"
                f" ({motion.temporal_position_encoding_max_len})",
                file=origin,
            )


class _Reader:
    """Reads one key after another; every error names the file and the key."""

    def __init__(self, values: Mapping[str, Any], origin: str, prefix: str = "") -> None:
        self._values, self._origin, self._prefix = values, origin, prefix

    def __call__(self, key: str, convert: Callable[[Any], _T], wanted: str) -> _T:
        name = self._prefix + key
        if key not in self._values:
            raise ModelError(
                f"{name} is missing", file=self._origin, fix=f'add it, or take it from a "base", as in {EXAMPLE}'
            )
        try:
            return convert(self._values[key])
        except ModelError as error:
            raise ModelError(error.message, file=self._origin, fix=error.fix) from error
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            shown = repr(self._values[key])
            shown = shown if len(shown) < 60 else f"{shown[:56]} ..."
            raise ModelError(f"{name}: {shown} is not {wanted}", file=self._origin, fix="correct that key") from error


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value):
        raise ValueError(value)
    return int(value)


def _real(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(value)
    return float(value)


def _points(value: Any) -> tuple[tuple[float, float], ...]:
    return tuple((_real(x), _real(y)) for x, y in value)


def _refuse_unknown_keys(values: Iterable[str], origin: str) -> None:
    known = [f.name for f in fields(ModelConfig) if not f.name.startswith("mask_")] + list(_OTHER_KEYS)
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            raise ModelError(
                f"unknown key {key!r}",
                file=origin,
                fix=f"did you mean {near[0]!r}?" if near else f"the keys are {', '.join(known)}",
            )
