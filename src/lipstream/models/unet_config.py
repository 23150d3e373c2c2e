"""The U-Net's settings, read from the published configuration's words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from lipstream.errors import ModelError


@dataclass(frozen=True)
class MotionConfig:
    """Settings of the motion modules, in the published configuration's words (`motion_module_kwargs`)."""

    num_attention_heads: int = 8
    num_transformer_block: int = 1
    attention_block_types: tuple[str, ...] = ("Temporal_Self", "Temporal_Self")
    temporal_position_encoding: bool = True
    temporal_position_encoding_max_len: int = 24


@dataclass(frozen=True)
class UNetConfig:
    """Settings of the U-Net, in the published configuration's words; the defaults are LatentSync 1.5 and 1.6.

    `attention_head_dim` is the number of heads (the name is Stable Diffusion 1.5's own slip).
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
    def from_dict(cls, words: Mapping[str, Any]) -> UNetConfig:
        """Read the published words. Raises ModelError for a word whose value this U-Net does not compute."""
        for word, value in _FIXED_WORDS.items():
            if words.get(word, value) != value:
                raise ModelError(f"U-Net configuration: {word} = {words[word]!r}; only {value!r} is supported")
        known = {f.name for f in fields(cls)}
        chosen: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in words.items() if k in known}
        motion: dict[str, Any] = dict(chosen.get("motion_module_kwargs", {}))
        for word, value in _FIXED_MOTION_WORDS.items():
            if motion.get(word, value) != value:
                raise ModelError(f"U-Net configuration: {word} = {motion[word]!r}; only {value!r} is supported")
        names = {f.name for f in fields(MotionConfig)}
        motion = {k: tuple(v) if isinstance(v, list) else v for k, v in motion.items() if k in names}
        chosen["motion_module_kwargs"] = MotionConfig(**motion)
        unknown = set(words) - known - set(_FIXED_WORDS) - _UNUSED_WORDS
        if unknown:
            raise ModelError(f"U-Net configuration: unknown words {', '.join(sorted(unknown))}")
        return cls(**chosen)


# Words of the published configuration with the one value that is computed here, and words that change nothing.
_FIXED_WORDS: dict[str, Any] = {
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
_FIXED_MOTION_WORDS: dict[str, Any] = {"temporal_attention_dim_div": 1}
_UNUSED_WORDS = {"sample_size"}
