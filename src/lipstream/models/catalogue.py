"""The named models, and the record that holds all that belongs to a model's weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from lipstream.errors import ModelError
from lipstream.models.unet_config import UNetConfig
from lipstream.models.whisper import AudioEncoderConfig
from lipstream.settings import Texture

CONFIG_NAME = "lipstream.json"
FORMAT = 1


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
class Hub:
    """The hub repositories that a model is downloaded from: the model's own, and its autoencoder's."""

    repo: str
    vae_repo: str


@dataclass(frozen=True)
class ModelConfig:
    """All that belongs to a model's weights.

    resolution: of the square crop, px. num_frames: of a window. num_inference_steps and guidance_scale: the model's
    own. scheduler: words of diffusers' DDIMScheduler. mask_polygon_xy: the repainted region on a mask_size square.
    quantized: what the files hold the weights as. texture: as in SyncSettings, the model's own choice.
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

    @classmethod
    def from_dict(cls, words: Mapping[str, Any], origin: str) -> ModelConfig:
        """Read the contents of a lipstream.json. Raises ModelError that names `origin` and the word at fault."""
        if words.get("format") != FORMAT:
            raise ModelError(f"{origin}: format {words.get('format')!r} is not known; this lipstream reads {FORMAT}")
        try:
            config = cls(
                name=str(words["name"]),
                resolution=int(words["resolution"]),
                num_frames=int(words["num_frames"]),
                num_inference_steps=int(words["num_inference_steps"]),
                guidance_scale=float(words["guidance_scale"]),
                scheduler=dict(words["scheduler"]),
                unet=UNetConfig.from_dict(words["unet"]),
                audio_encoder=AudioEncoderConfig.from_dict(words["audio_encoder"]),
                mask_size=int(words["mask"]["size"]),
                mask_polygon_xy=tuple((float(x), float(y)) for x, y in words["mask"]["polygon_xy"]),
                files=ModelFiles(**words["files"]),
                hub=Hub(**words["hub"]) if words.get("hub") else None,
                quantized=words.get("quantized", "none"),
                texture=words.get("texture", "painted"),
            )
        except KeyError as error:
            raise ModelError(f"{origin}: the word {error} is missing") from error
        except (TypeError, ValueError) as error:
            raise ModelError(f"{origin}: {error}") from error
        config._check(origin)
        return config

    def _check(self, origin: str) -> None:
        if self.quantized not in ("none", "int8"):
            raise ModelError(f"{origin}: quantized {self.quantized!r} is not known; this lipstream reads none and int8")
        if self.texture not in get_args(Texture):
            raise ModelError(f"{origin}: texture {self.texture!r} is not one of {', '.join(get_args(Texture))}")
        channels = self.unet.out_channels
        if self.unet.in_channels != 3 * channels + 1:
            raise ModelError(
                f"{origin}: {self.unet.in_channels} U-Net input channels do not belong to {channels} latent channels;"
                f" {3 * channels + 1} do (noisy, mask, masked crop, whole crop)"
            )
        if self.unet.cross_attention_dim != self.audio_encoder.n_audio_state:
            raise ModelError(
                f"{origin}: cross_attention_dim {self.unet.cross_attention_dim} does not belong to an audio encoder"
                f" of {self.audio_encoder.n_audio_state} channels"
            )
        motion = self.unet.motion_module_kwargs
        if self.num_frames < 1 or self.num_frames > motion.temporal_position_encoding_max_len:
            raise ModelError(f"{origin}: num_frames {self.num_frames} is not from 1 to the motion modules' positions")
