"""The U-Net's settings, read from the published configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from lipstream.errors import ModelError


@dataclass(frozen=True)
class MotionConfig:
    """Settings of the motion modules, with the published configuration's names (`motion_module_kwargs`)."""

    num_attention_heads: int = 8
    num_transformer_block: int = 1
    attention_block_types: tuple[str, ...] = ("Temporal_Self", "Temporal_Self")
    temporal_position_encoding: bool = True
    temporal_position_encoding_max_len: int = 24


@dataclass(frozen=True)
class UNetConfig:
    """Settings of the U-Net, with the published configuration's names; the defaults are LatentSync 1.5 and 1.6.

    `attention_head_dim` is the number of heads (a misnomer of Stable Diffusion 1.5).
    """

    in_channels: int = 13
    out_channels: int = 4
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    down_block_types: tuple[str, ...] = ("CrossAttnDownBlock3D",) * 3 + ("DownBlock3D",)
    up_block_types: tuple[str, ...] = ("UpBlock3D",) + ("CrossAttnUpBlock3D",) * 3
    layers_per_block: int = 2
    cross_attention_dim: int = 384
    attention_head_dim: int = 8
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    flip_sin_to_cos: bool = True
    freq_shift: int = 0
    use_motion_module: bool = True
    motion_module_resolutions: tuple[int, ...] = (1, 2, 4, 8)
    motion_module_mid_block: bool = False
    motion_module_decoder_only: bool = False
    motion_module_kwargs: MotionConfig = MotionConfig()

    @classmethod
    def from_dict(cls, options: Mapping[str, Any]) -> UNetConfig:
        """Read the published options. Raises ModelError for an unknown one or a value that is not supported."""
        _check_fixed(options, _FIXED_OPTIONS)
        known = {f.name for f in fields(cls)}
        chosen: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items() if k in known}
        motion: dict[str, Any] = dict(chosen.get("motion_module_kwargs", {}))
        _check_fixed(motion, _FIXED_MOTION_OPTIONS)
        names = {f.name for f in fields(MotionConfig)}
        motion = {k: tuple(v) if isinstance(v, list) else v for k, v in motion.items() if k in names}
        chosen["motion_module_kwargs"] = MotionConfig(**motion)
        unknown = set(options) - known - set(_FIXED_OPTIONS) - _UNUSED_OPTIONS
        if unknown:
            raise ModelError(f"the U-Net's configuration has unknown options: {', '.join(sorted(unknown))}", fix=_FIX)
        return cls(**chosen)


def _check_fixed(options: Mapping[str, Any], fixed: Mapping[str, Any]) -> None:
    for name, value in fixed.items():
        if options.get(name, value) != value:
            raise ModelError(
                f"the U-Net's configuration has {name} = {options[name]!r}; only {value!r} is supported", fix=_FIX
            )


_FIX = "use the configuration that belongs to a LatentSync 1.5 or 1.6 checkpoint"
# Options of the published configuration with the one value that is supported, and options without effect here.
_FIXED_OPTIONS: dict[str, Any] = {
    "act_fn": "silu",
    "add_audio_layer": True,
    "center_input_sample": False,
    "mid_block_type": "UNetMidBlock3DCrossAttn",
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    "resnet_time_scale_shift": "default",
    "motion_module_type": "Vanilla",
    "use_linear_projection": False,
}
_FIXED_MOTION_OPTIONS: dict[str, Any] = {"temporal_attention_dim_div": 1}
_UNUSED_OPTIONS = {"sample_size"}
