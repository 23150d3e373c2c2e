"""The layers of the video U-Net: ResNet blocks, attention within a frame, to the audio and over the frames.

Everything is laid out as (frames, channels, height, width), in the memory format of the weights; windows of a batch
lie one after another along the frame axis. Module and parameter names are those of the published checkpoint. Sources:
see lipstream.models.unet.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lipstream.models.eight_bit import Int8Linear
from lipstream.models.unet_config import MotionConfig, UNetConfig

# CUDA's kernels take no more at once (https://github.com/pytorch/pytorch/issues/146704); many large windows have more.
_MOST_ATTENTIONS = 65535


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
        """`x` (n, in_channels, h, w) and `time` (1 or n, time channels) to (n, out_channels, h, w)."""
        hidden = self.conv1(F.silu(self.norm1(x, num_frames)))
        hidden = hidden + self.time_emb_proj(F.silu(time))[:, :, None, None]
        hidden = self.conv2(F.silu(self.norm2(hidden, num_frames)))
        return hidden + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Shortcut(nn.Module):
    """What stays of a ResNet block that is left out (see lipstream.models.prune)."""

    def __init__(self, block: ResnetBlock) -> None:
        super().__init__()
        self.conv_shortcut = block.conv_shortcut

    def forward(self, x: Tensor, time: Tensor, num_frames: int) -> Tensor:
        """`x` (n, in_channels, h, w) to (n, out_channels, h, w): as it is where the widths agree."""
        return x if self.conv_shortcut is None else self.conv_shortcut(x)


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


class KeysValues(NamedTuple):
    """What attention looks at: two tensors (b, heads, tokens, channels / heads)."""

    keys: Tensor
    values: Tensor


class SelfAttention(nn.Module):
    """Multi-head attention of tokens to one another, with positions where `max_len` is given."""

    def __init__(self, channels: int, heads: int, max_len: int = 0) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(channels, channels, bias=False)
        self.to_v = nn.Linear(channels, channels, bias=False)
        self.to_qkv: nn.Linear | Int8Linear | None = None
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])
        self.pos_encoder = PositionEncoding(channels, max_len) if max_len else None

    def fuse_projections(self) -> None:
        """Put one layer three times as wide in place of the three projections: the tokens are read once."""
        if self.to_qkv is not None:
            return
        self.to_qkv = _side_by_side(self.to_q, self.to_k, self.to_v)
        del self.to_q, self.to_k, self.to_v

    def forward(self, x: Tensor) -> Tensor:
        """(b, tokens, channels) to the same shape."""
        if self.pos_encoder is not None:
            x = x + self.pos_encoder.pe[:, : x.shape[1]]
        if self.to_qkv is None:
            query, key, value = self.to_q(x), self.to_k(x), self.to_v(x)
        else:
            query, key, value = self.to_qkv(x).chunk(3, -1)
        seen = KeysValues(_heads_apart(key, self.heads), _heads_apart(value, self.heads))
        return self.to_out[0](_attend(_heads_apart(query, self.heads), seen))


def _side_by_side(*layers: nn.Linear | Int8Linear) -> nn.Linear | Int8Linear:
    """One layer whose outputs are those of `layers`, which have no bias, one after another."""
    first = layers[0]
    sizes = first.in_features, sum(layer.out_features for layer in layers)
    wide: nn.Linear | Int8Linear
    if isinstance(first, Int8Linear):
        wide = Int8Linear(*sizes, bias=False, dynamic=first.dynamic)
    else:
        wide = nn.Linear(*sizes, bias=False, device="meta").requires_grad_(first.weight.requires_grad)
    states = [layer.state_dict() for layer in layers]
    wide.load_state_dict({name: torch.cat([state[name] for state in states]) for name in states[0]}, assign=True)
    return wide


class CrossAttention(nn.Module):
    """Multi-head attention of tokens to a context."""

    def __init__(self, channels: int, heads: int, context_channels: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(context_channels, channels, bias=False)
        self.to_v = nn.Linear(context_channels, channels, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def keys_values(self, context: Tensor) -> KeysValues:
        """What attention to `context` (b, context tokens, context channels) looks at."""
        return KeysValues(_heads_apart(self.to_k(context), self.heads), _heads_apart(self.to_v(context), self.heads))

    def forward(self, x: Tensor, seen: KeysValues) -> Tensor:
        """`x` (b, tokens, channels) to the same shape; `seen`: of as many b."""
        return self.to_out[0](_attend(_heads_apart(self.to_q(x), self.heads), seen))

    @property
    def of_silence(self) -> Tensor:
        """What a context of zeros gives, whatever `x` is: (channels,). The projections of zero are zero."""
        bias: Tensor = self.to_out[0].bias  # type: ignore[assignment]
        return bias


def _heads_apart(x: Tensor, heads: int) -> Tensor:
    """(b, tokens, channels) to (b, heads, tokens, channels / heads)."""
    return x.view(*x.shape[:2], heads, -1).transpose(1, 2)


def _attend(query: Tensor, seen: KeysValues) -> Tensor:
    """Attention with heads apart, to (b, tokens, channels)."""
    if len(query) > _MOST_ATTENTIONS:
        parts = zip(*(torch.split(tensor, _MOST_ATTENTIONS) for tensor in (query, *seen)), strict=True)
        return torch.cat([_attend(query, KeysValues(keys, values)) for query, keys, values in parts])
    return F.scaled_dot_product_attention(query, seen.keys, seen.values).transpose(1, 2).flatten(2)


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
        self.attn1 = SelfAttention(channels, heads)
        self.norm2 = nn.LayerNorm(channels)
        self.attn2 = CrossAttention(channels, heads, audio_channels)
        self.norm3 = nn.LayerNorm(channels)
        self.ff = FeedForward(channels)

    def forward(self, x: Tensor, heard: KeysValues, guided: bool) -> Tensor:
        """`x` (n or 2 n, h * w, channels) to (n, h * w, channels), guided to (2 n, ...): see SpatialTransformer."""
        x = x + self.attn1(self.norm1(x))
        x = self._hear(x, heard, guided)
        return x + self.ff(self.norm3(x))

    def _hear(self, x: Tensor, heard: KeysValues, guided: bool) -> Tensor:
        if not guided:
            return x + self.attn2(self.norm2(x), heard)
        # Where the branches part, x holds n frames and both slices are all of it; from there on each is one branch.
        n = len(heard.keys)
        silent, hearing = x[:n], x[-n:]
        return torch.cat((silent + self.attn2.of_silence, hearing + self.attn2(self.norm2(hearing), heard)))


class SpatialTransformer(nn.Module):
    """Attention layer of one frame; its group norm is per frame."""

    def __init__(self, channels: int, config: UNetConfig) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(config.norm_num_groups, channels, eps=1e-6)
        self.proj_in = nn.Conv2d(channels, channels, 1)
        block = SpatialBlock(channels, config.attention_head_dim, config.cross_attention_dim)
        self.transformer_blocks = nn.ModuleList([block])
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def hear(self, audio: Tensor) -> KeysValues:
        """What this layer hears of `audio` (n, tokens, audio channels): the same at every step."""
        return self.transformer_blocks[0].attn2.keys_values(audio)  # type: ignore[union-attr,operator]

    def forward(self, x: Tensor, heard: KeysValues, guided: bool) -> Tensor:
        """`x` (n, channels, h, w), `heard` of n frames, to the shape of `x`.

        guided: to (2 n, channels, h, w), the n frames without audio first; `x` may be parted already or still shared.
        """
        hidden = self.proj_in(self.norm(x)).permute(0, 2, 3, 1)
        tokens = self.transformer_blocks[0](hidden.flatten(1, 2), heard, guided)
        return in_branches(x, len(tokens)) + self.proj_out(tokens.unflatten(1, hidden.shape[1:3]).permute(0, 3, 1, 2))


def in_branches(x: Tensor, n: int) -> Tensor:
    """`x` itself where it has `n` frames; twice `x` where `n` is twice as many: both branches start from it."""
    return x if len(x) == n else torch.cat((x, x))


class TemporalBlock(nn.Module):
    """Self-attentions over the frames of a window, then feed-forward; each pre-normed and residual."""

    def __init__(self, channels: int, config: MotionConfig) -> None:
        super().__init__()
        max_len = config.temporal_position_encoding_max_len if config.temporal_position_encoding else 0
        count = len(config.attention_block_types)
        self.attention_blocks = nn.ModuleList(
            [SelfAttention(channels, config.num_attention_heads, max_len) for _ in range(count)]
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


class TimeEmbedding(nn.Module):
    """Two linear layers over the sinusoidal timestep."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(in_channels, out_channels)
        self.linear_2 = nn.Linear(out_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(n, in_channels) to (n, out_channels)."""
        return self.linear_2(F.silu(self.linear_1(x)))
