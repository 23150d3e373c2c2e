"""The video U-Net of LatentSync: Stable Diffusion 1.5's shape with motion modules between the frames.

Everything is laid out as (frames, channels, height, width), channels last in memory; windows of a batch lie one after
another along the frame axis. Module and parameter names are those of the published checkpoint, so that its state dict
loads as it is. Sources: Rombach et al. 2022 (https://arxiv.org/abs/2112.10752), Guo et al. 2023 (AnimateDiff,
https://arxiv.org/abs/2307.04725), Li et al. 2024 (LatentSync, https://arxiv.org/abs/2412.09262).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lipstream.models.unet_config import MotionConfig, UNetConfig


class PooledGroupNorm(nn.GroupNorm):
    """Group norm whose statistics pool over all frames of a window (published behaviour in ResNet blocks)."""

    def forward(self, x: Tensor, num_frames: int = 1) -> Tensor:
        """Normalise `x` (windows * num_frames, channels, height, width)."""
        n, c, h, w = x.shape
        grouped = x.view(n // num_frames, num_frames, self.num_groups, c // self.num_groups, h, w)
        variance, mean = torch.var_mean(grouped.float(), dim=(1, 3, 4, 5), correction=0)
        scale = torch.rsqrt(variance + self.eps)
        per_channel = c // self.num_groups
        weight = scale.repeat_interleave(per_channel, 1) * self.weight.float()
        bias = self.bias.float() - mean.repeat_interleave(per_channel, 1) * weight
        shape = (n // num_frames, 1, c, 1, 1)
        windows = x.view(n // num_frames, num_frames, c, h, w)
        return torch.addcmul(bias.view(shape).to(x.dtype), windows, weight.view(shape).to(x.dtype)).view_as(x)


class ResnetBlock(nn.Module):
    """Two convolutions with the timestep added between them, around a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, config: UNetConfig) -> None:
        super().__init__()
        groups, eps, time_channels = config.norm_num_groups, config.norm_eps, 4 * config.block_out_channels[0]
        self.norm1 = PooledGroupNorm(groups, in_channels, eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = nn.Linear(time_channels, out_channels)
        self.norm2 = PooledGroupNorm(groups, out_channels, eps)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: Tensor, time: Tensor, num_frames: int) -> Tensor:
        """`x` (n, in_channels, h, w) and `time` (n, time channels) to (n, out_channels, h, w)."""
        hidden = self.conv1(F.silu(self.norm1(x, num_frames)))
        hidden = hidden + self.time_emb_proj(F.silu(time))[:, :, None, None]
        hidden = self.conv2(F.silu(self.norm2(hidden, num_frames)))
        return hidden + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class PositionEncoding(nn.Module):
    """Holds the sinusoidal positions (1, max_len, channels), as the published checkpoint names them."""

    pe: Tensor

    def __init__(self, channels: int, max_len: int) -> None:
        super().__init__()
        self.register_buffer("pe", sinusoidal_positions(max_len, channels))


def sinusoidal_positions(max_len: int, channels: int) -> Tensor:
    """Sine in even, cosine in odd channels (Vaswani et al. 2017): (1, max_len, channels), float32."""
    position = torch.arange(max_len, dtype=torch.float32)[:, None]
    rate = torch.exp(torch.arange(0, channels, 2, dtype=torch.float32) * (-math.log(10000.0) / channels))
    return torch.stack((torch.sin(position * rate), torch.cos(position * rate)), -1).flatten(1)[None]


class Attention(nn.Module):
    """Multi-head attention over (batch, tokens, channels); keys and values from `context` where it is given."""

    def __init__(self, channels: int, heads: int, context_channels: int | None = None, max_len: int = 0) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(context_channels or channels, channels, bias=False)
        self.to_v = nn.Linear(context_channels or channels, channels, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])
        self.pos_encoder = PositionEncoding(channels, max_len) if max_len else None

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """`x` (b, tokens, channels), `context` (b, context tokens, context channels) to (b, tokens, channels)."""
        if self.pos_encoder is not None:
            x = x + self.pos_encoder.pe[:, : x.shape[1]]
        context = x if context is None else context
        query, key, value = (
            t.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for t in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        hidden = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        return self.to_out[0](hidden)


class GEGLU(nn.Module):
    """Gated GELU (Shazeer 2020): a linear layer of twice the width, one half gating the other."""

    def __init__(self, channels: int, inner_channels: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels, 2 * inner_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(..., channels) to (..., inner_channels)."""
        hidden, gate = self.proj(x).chunk(2, dim=-1)
        return hidden * F.gelu(gate)


class FeedForward(nn.Module):
    """GEGLU of four times the width and a linear layer back. `net.1` is the published code's dropout place."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.net = nn.Sequential(GEGLU(channels, 4 * channels), nn.Identity(), nn.Linear(4 * channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """(..., channels) to the same shape."""
        return self.net(x)


class SpatialBlock(nn.Module):
    """Self-attention within a frame, cross-attention to its audio, feed-forward; each pre-normed and residual."""

    def __init__(self, channels: int, heads: int, audio_channels: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = Attention(channels, heads)
        self.norm2 = nn.LayerNorm(channels)
        self.attn2 = Attention(channels, heads, audio_channels)
        self.norm3 = nn.LayerNorm(channels)
        self.ff = FeedForward(channels)

    def forward(self, x: Tensor, audio: Tensor) -> Tensor:
        """`x` (n, h * w, channels), `audio` (n, tokens, audio channels) to the shape of `x`."""
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), audio)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """Attention layer of one frame; its group norm is per frame."""

    def __init__(self, channels: int, config: UNetConfig) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(config.norm_num_groups, channels, eps=1e-6)
        self.proj_in = nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList(
            [SpatialBlock(channels, config.attention_head_dim, config.cross_attention_dim)]
        )
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, audio: Tensor) -> Tensor:
        """`x` (n, channels, h, w), `audio` (n, tokens, audio channels) to the shape of `x`."""
        hidden = self.proj_in(self.norm(x)).permute(0, 2, 3, 1)
        tokens = hidden.flatten(1, 2)
        for block in self.transformer_blocks:
            tokens = block(tokens, audio)
        return x + self.proj_out(tokens.view_as(hidden).permute(0, 3, 1, 2))


class TemporalBlock(nn.Module):
    """Self-attentions over the frames of a window, then feed-forward; each pre-normed and residual."""

    def __init__(self, channels: int, config: MotionConfig) -> None:
        super().__init__()
        max_len = config.temporal_position_encoding_max_len if config.temporal_position_encoding else 0
        count = len(config.attention_block_types)
        self.attention_blocks = nn.ModuleList(
            [Attention(channels, config.num_attention_heads, max_len=max_len) for _ in range(count)]
        )
        self.norms = nn.ModuleList([nn.LayerNorm(channels) for _ in range(count)])
        self.ff = FeedForward(channels)
        self.ff_norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """`x` (windows * pixels, frames, channels) to the same shape."""
        for attention, norm in zip(self.attention_blocks, self.norms, strict=True):
            x = x + attention(norm(x))
        return x + self.ff(self.ff_norm(x))


class TemporalTransformer(nn.Module):
    """AnimateDiff's temporal transformer: every pixel attends to itself in the other frames of the window."""

    def __init__(self, channels: int, config: MotionConfig) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(32, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, channels)
        self.transformer_blocks = nn.ModuleList(
            [TemporalBlock(channels, config) for _ in range(config.num_transformer_block)]
        )
        self.proj_out = nn.Linear(channels, channels)

    def forward(self, x: Tensor, num_frames: int) -> Tensor:
        """`x` (windows * num_frames, channels, h, w) to the same shape."""
        n, c, h, w = x.shape
        windows = (n // num_frames, num_frames, h * w, c)
        # The frames stay next to one another from here to the end: only attention minds the order of the axes.
        tokens = self.norm(x).permute(0, 2, 3, 1).reshape(windows).transpose(1, 2).flatten(0, 1)
        tokens = self.proj_in(tokens)
        for block in self.transformer_blocks:
            tokens = block(tokens)
        tokens = self.proj_out(tokens).view(windows[0], h * w, num_frames, c).transpose(1, 2)
        return x + tokens.reshape(n, h, w, c).permute(0, 3, 1, 2)


class MotionModule(nn.Module):
    """One motion module; the extra level is the published checkpoint's."""

    def __init__(self, channels: int, config: MotionConfig) -> None:
        super().__init__()
        self.temporal_transformer = TemporalTransformer(channels, config)

    def forward(self, x: Tensor, num_frames: int) -> Tensor:
        """`x` (windows * num_frames, channels, h, w) to the same shape."""
        return self.temporal_transformer(x, num_frames)


class Resample(nn.Module):
    """A 3 x 3 convolution at a new size: of stride 2 downwards, after nearest-neighbour enlargement upwards."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=stride, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """`x` (n, channels, h, w); enlarged to `size` (height, width) first where it is given."""
        return self.conv(x if size is None else F.interpolate(x, size=size))


class Block(nn.Module):
    """The layers of one resolution: ResNet block, audio attention, motion module, once per entry of `channels`.

    `channels` holds (in, out) of each ResNet block. `attentions` and `motion_modules` are dictionaries by layer, so
    that a layer can be left out of the model without renaming the others.
    """

    def __init__(
        self,
        channels: list[tuple[int, int]],
        config: UNetConfig,
        *,
        attention: bool,
        motion: bool,
        scale: str | None,
    ) -> None:
        super().__init__()
        out = channels[-1][1]
        self.resnets = nn.ModuleList([ResnetBlock(i, o, config) for i, o in channels])
        names = [str(i) for i in range(len(channels))]
        self.attentions = nn.ModuleDict({n: SpatialTransformer(out, config) for n in names} if attention else {})
        motion_config = config.motion_module_kwargs
        self.motion_modules = nn.ModuleDict({n: MotionModule(out, motion_config) for n in names} if motion else {})
        self.downsamplers = nn.ModuleList([Resample(out, stride=2)]) if scale == "down" else None
        self.upsamplers = nn.ModuleList([Resample(out, stride=1)]) if scale == "up" else None

    def layer(self, index: int, x: Tensor, time: Tensor, audio: Tensor, num_frames: int) -> Tensor:
        """Layer `index` of the block on `x` (windows * num_frames, channels, h, w)."""
        x = self.resnets[index](x, time, num_frames)
        return self.after_resnet(index, x, audio, num_frames)

    def after_resnet(self, index: int, x: Tensor, audio: Tensor, num_frames: int) -> Tensor:
        """Attention and motion module of layer `index`, as far as the model has them."""
        name = str(index)
        if name in self.attentions:
            x = self.attentions[name](x, audio)
        if name in self.motion_modules:
            x = self.motion_modules[name](x, num_frames)
        return x


class MidBlock(Block):
    """The middle: a ResNet block, then attention and a second ResNet block."""

    def __init__(self, channels: int, config: UNetConfig) -> None:
        pair = [(channels, channels)]
        super().__init__(pair, config, attention=True, motion=config.motion_module_mid_block, scale=None)
        self.resnets.append(ResnetBlock(channels, channels, config))

    def forward(self, x: Tensor, time: Tensor, audio: Tensor, num_frames: int) -> Tensor:
        """`x` (windows * num_frames, channels, h, w) to the same shape."""
        return self.resnets[1](self.layer(0, x, time, audio, num_frames), time, num_frames)


class TimeEmbedding(nn.Module):
    """Two linear layers over the sinusoidal timestep."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(in_channels, out_channels)
        self.linear_2 = nn.Linear(out_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(n, in_channels) to (n, out_channels)."""
        return self.linear_2(F.silu(self.linear_1(x)))


class UNet(nn.Module):
    """Predicts the noise (or what the model's scheduler calls for) of windows of frames."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.block_out_channels
        levels = len(widths)
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.time_embedding = TimeEmbedding(widths[0], 4 * widths[0])

        self.down_blocks = nn.ModuleList()
        skips = [widths[0]]
        for i, kind in enumerate(config.down_block_types):
            ins = [widths[max(i - 1, 0)]] + [widths[i]] * (config.layers_per_block - 1)
            motion = self._has_motion(2**i) and not config.motion_module_decoder_only
            last = i == levels - 1
            pairs = [(c, widths[i]) for c in ins]
            attention = kind.startswith("CrossAttn")
            self.down_blocks.append(
                Block(pairs, config, attention=attention, motion=motion, scale=None if last else "down")
            )
            skips += [widths[i]] * (config.layers_per_block + (not last))

        self.mid_block = MidBlock(widths[-1], config)

        self.up_blocks = nn.ModuleList()
        previous = widths[-1]
        for i, kind in enumerate(config.up_block_types):
            width = widths[levels - 1 - i]
            ins = [previous] + [width] * config.layers_per_block
            pairs = [(c + skips.pop(), width) for c in ins]
            motion = self._has_motion(2 ** (levels - 1 - i))
            scale = None if i == levels - 1 else "up"
            attention = kind.startswith("CrossAttn")
            self.up_blocks.append(Block(pairs, config, attention=attention, motion=motion, scale=scale))
            previous = width

        self.conv_norm_out = PooledGroupNorm(config.norm_num_groups, widths[0], config.norm_eps)
        self.conv_out = nn.Conv2d(widths[0], config.out_channels, 3, padding=1)

    def _has_motion(self, resolution: int) -> bool:
        return self.config.use_motion_module and resolution in self.config.motion_module_resolutions

    def forward(self, sample: Tensor, timestep: Tensor, audio: Tensor, num_frames: int) -> Tensor:
        """Denoise windows of `num_frames` frames.

        sample: (windows * num_frames, in_channels, height, width). timestep: a scalar, or one a window.
        audio: (windows * num_frames, tokens, cross_attention_dim). Returns (windows * num_frames, out_channels,
        height, width) in the dtype of `sample`.
        """
        time = self._embed_time(timestep, sample, num_frames)
        x = self.conv_in(sample.contiguous(memory_format=torch.channels_last))
        skips = [x]
        for block in cast(Iterable[Block], self.down_blocks):
            for i in range(len(block.resnets)):
                x = block.layer(i, x, time, audio, num_frames)
                skips.append(x)
            if block.downsamplers is not None:
                x = block.downsamplers[0](x)
                skips.append(x)
        x = self.mid_block(x, time, audio, num_frames)
        for block in cast(Iterable[Block], self.up_blocks):
            for i in range(len(block.resnets)):
                x = block.layer(i, torch.cat((x, skips.pop()), 1), time, audio, num_frames)
            if block.upsamplers is not None:
                height, width = skips[-1].shape[-2:]
                x = block.upsamplers[0](x, size=(height, width))
        return self.conv_out(F.silu(self.conv_norm_out(x, num_frames)))

    def _embed_time(self, timestep: Tensor, sample: Tensor, num_frames: int) -> Tensor:
        windows = sample.shape[0] // num_frames
        half = self.config.block_out_channels[0] // 2
        index = torch.arange(half, dtype=torch.float32, device=sample.device)
        rate = torch.exp(index * (-math.log(10000.0) / (half - self.config.freq_shift)))
        angle = timestep.to(sample.device).float().expand(windows)[:, None] * rate
        halves = (torch.cos(angle), torch.sin(angle))
        wave = torch.cat(halves if self.config.flip_sin_to_cos else halves[::-1], -1).to(sample.dtype)
        return self.time_embedding(wave).repeat_interleave(num_frames, 0)
