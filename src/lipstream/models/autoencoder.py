"""The variational autoencoder between pixels and latents: Stable Diffusion's shape, of any widths.

Computes what diffusers' AutoencoderKL does, with its parameter names, configuration and calls. Sources: Rombach et al.
2022 (https://arxiv.org/abs/2112.10752), Esser et al. 2021 (https://arxiv.org/abs/2012.09841).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_EPS = 1e-6
_DOWN, _UP = "DownEncoderBlock2D", "UpDecoderBlock2D"


@dataclass(frozen=True)
class AutoencoderConfig:
    """Sizes, by the names and with the defaults of diffusers' AutoencoderKL."""

    in_channels: int = 3
    out_channels: int = 3
    down_block_types: tuple[str, ...] = (_DOWN,)
    up_block_types: tuple[str, ...] = (_UP,)
    block_out_channels: tuple[int, ...] = (64,)
    layers_per_block: int = 1
    act_fn: str = "silu"
    latent_channels: int = 4
    norm_num_groups: int = 32
    scaling_factor: float = 0.18215
    shift_factor: float | None = None
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> AutoencoderConfig:
        """Take what is known of a configuration file. Raises ValueError for blocks that are not computed here."""
        known = {field.name for field in fields(cls)}
        given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k in known}
        config = cls(**given)
        levels = len(config.block_out_channels)
        wanted = {"down_block_types": (_DOWN,) * levels, "up_block_types": (_UP,) * levels, "act_fn": "silu"}
        for name, value in wanted.items():
            if getattr(config, name) != value:
                raise ValueError(f"{name} = {getattr(config, name)} is not supported")
        return config


class Moments(NamedTuple):
    """The Gaussian distribution of latents: mean and logarithm of the variance, each (n, C, h, w)."""

    mean: Tensor
    log_variance: Tensor

    def mode(self) -> Tensor:
        """Return the most likely latents."""
        return self.mean


class Encoded(NamedTuple):
    """What `Autoencoder.encode` returns."""

    latent_dist: Moments


class Decoded(NamedTuple):
    """What `Autoencoder.decode` returns: pixels (n, 3, factor h, factor w)."""

    sample: Tensor


class Autoencoder(nn.Module):
    """Encode images to the distribution of their latents, and decode latents."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        latents = config.latent_channels
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv2d(2 * latents, 2 * latents, 1) if config.use_quant_conv else None
        self.post_quant_conv = nn.Conv2d(latents, latents, 1) if config.use_post_quant_conv else None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.encoder.conv_in.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """What is computed in."""
        return self.encoder.conv_in.weight.dtype

    def encode(self, pixels: Tensor) -> Encoded:
        """(n, 3, factor h, factor w) in [-1, 1] to unscaled latents."""
        moments = self.encoder(pixels)
        mean, log_variance = (moments if self.quant_conv is None else self.quant_conv(moments)).chunk(2, 1)
        return Encoded(Moments(mean, log_variance))

    def decode(self, latents: Tensor) -> Decoded:
        """Unscaled latents (n, C, h, w) to pixels, about [-1, 1]."""
        return Decoded(self.decoder(latents if self.post_quant_conv is None else self.post_quant_conv(latents)))


class Encoder(nn.Module):
    """Pixels to mean and logarithm of the variance, one after the other along the channels."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths, groups = config.block_out_channels, config.norm_num_groups
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList()
        for i, width in enumerate(widths):
            ins = [widths[max(i - 1, 0)]] + [width] * (config.layers_per_block - 1)
            scale = Downsample(width) if i < len(widths) - 1 else None
            self.down_blocks.append(Level([(c, width) for c in ins], groups, downsampler=scale))
        self.mid_block = Middle(widths[-1], config)
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], _EPS)
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(n, 3, h, w) to (n, 2 C, h / factor, w / factor)."""
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        return self.conv_out(activated(self.conv_norm_out, self.mid_block(x)))


class Decoder(nn.Module):
    """Latents to pixels."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths, groups = config.block_out_channels[::-1], config.norm_num_groups
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.mid_block = Middle(widths[0], config)
        self.up_blocks = nn.ModuleList()
        for i, width in enumerate(widths):
            ins = [widths[max(i - 1, 0)]] + [width] * config.layers_per_block
            scale = Upsample(width) if i < len(widths) - 1 else None
            self.up_blocks.append(Level([(c, width) for c in ins], groups, upsampler=scale))
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], _EPS)
        self.conv_out = nn.Conv2d(widths[-1], config.out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(n, C, h, w) to (n, 3, factor h, factor w)."""
        x = self.mid_block(self.conv_in(x))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(activated(self.conv_norm_out, x))


class Level(nn.Module):
    """The layers of one resolution. channels: (in, out) of each ResNet block."""

    def __init__(
        self,
        channels: Sequence[tuple[int, int]],
        groups: int,
        *,
        downsampler: nn.Module | None = None,
        upsampler: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([ResnetBlock(i, o, groups) for i, o in channels])
        self.downsamplers = None if downsampler is None else nn.ModuleList([downsampler])
        self.upsamplers = None if upsampler is None else nn.ModuleList([upsampler])

    def forward(self, x: Tensor) -> Tensor:
        """Compute the blocks, then half or twice the size."""
        for resnet in self.resnets:
            x = resnet(x)
        for scale in self.downsamplers or self.upsamplers or ():
            x = scale(x)
        return x


class Middle(nn.Module):
    """Two ResNet blocks, and attention between them where the configuration has it."""

    def __init__(self, channels: int, config: AutoencoderConfig) -> None:
        super().__init__()
        groups = config.norm_num_groups
        self.resnets = nn.ModuleList([ResnetBlock(channels, channels, groups) for _ in range(2)])
        attention = [Attention(channels, groups)] if config.mid_block_add_attention else []
        self.attentions = nn.ModuleList(attention)

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels, h, w) to the same shape."""
        x = self.resnets[0](x)
        for attention in self.attentions:
            x = attention(x)
        return self.resnets[1](x)


class ResnetBlock(nn.Module):
    """Two convolutions around a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, _EPS)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, out_channels, _EPS)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: Tensor) -> Tensor:
        """(n, in_channels, h, w) to (n, out_channels, h, w)."""
        hidden: Tensor = self.conv1(activated(self.norm1, x))
        hidden = self.conv2(activated(self.norm2, hidden))
        return hidden.add_(x if self.conv_shortcut is None else self.conv_shortcut(x))


def activated(norm: nn.Module, x: Tensor) -> Tensor:
    """Return x * sigmoid(x) of the normalised `x`; in place, which the largest activations of all are worth."""
    return F.silu(norm(x), inplace=True)


class Attention(nn.Module):
    """Self-attention of an image's pixels with one head."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, channels, _EPS)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels, h, w) to the same shape."""
        tokens = self.group_norm(x).permute(0, 2, 3, 1).flatten(1, 2)
        query, key, value = (layer(tokens)[:, None] for layer in (self.to_q, self.to_k, self.to_v))
        attended: Tensor = self.to_out[0](F.scaled_dot_product_attention(query, key, value)[:, 0])
        return x + attended.view(x.shape[0], *x.shape[2:], -1).permute(0, 3, 1, 2)


class Downsample(nn.Module):
    """A convolution of stride 2, padded by a row below and a column at the right."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels, h, w) to (n, channels, h / 2, w / 2)."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Nearest-neighbour interpolation to twice the size and a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels, h, w) to (n, channels, 2 h, 2 w)."""
        return self.conv(F.interpolate(x, scale_factor=2.0))
