"""The layers of the video U-Net: ResNet blocks, spatial self-attention, cross-attention to audio, temporal attention.

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

from lipstream.models.group_norm import PooledGroupNorm
from lipstream.models.quantized_layers import Int8Linear
from lipstream.models.unet_config import MotionConfig, UNetConfig

# CUDA's attention kernels launch at most this many sequences (https://github.com/pytorch/pytorch/issues/146704).
_MAX_SEQUENCES = 65535
# Metal stores all scores of an attention call in one array and fails, or is wrong without an error, beyond 2**32 bytes
# or 2**31 elements (https://github.com/pytorch/pytorch/issues/149261). 2**28 scores are 1 GiB in float32. The fused
# kernels of CPUs and CUDA store no scores.
_MAX_SCORES_METAL = 2**28


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
        """`x` (n, in_channels, h, w) to (n, out_channels, h, w).

        time: (1 or n, time channels), or of half of the frames where `x` holds both branches of a guided step.
        """
        hidden = self.conv1(F.silu(self.norm1(x, num_frames)))
        added = self.time_emb_proj(F.silu(time))
        hidden = hidden + (added if added.shape[0] == 1 else in_branches(added, x.shape[0]))[:, :, None, None]
        hidden = self.conv2(F.silu(self.norm2(hidden, num_frames)))
        return hidden + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Shortcut(nn.Module):
    """The shortcut of a ResNet block that was pruned (see lipstream.models.prune)."""

    def __init__(self, block: ResnetBlock) -> None:
        super().__init__()
        self.conv_shortcut = block.conv_shortcut

    def forward(self, x: Tensor, time: Tensor, num_frames: int) -> Tensor:
        """`x` (n, in_channels, h, w) to (n, out_channels, h, w); unchanged where the widths are equal."""
        return x if self.conv_shortcut is None else self.conv_shortcut(x)


class PositionEncoding(nn.Module):
    """Holds the sinusoidal positions (1, max_len, channels), as the published checkpoint names them."""

    pe: Tensor

    def __init__(self, channels: int, max_len: int) -> None:
        super().__init__()
        pe = torch.empty(1, max_len, channels)
        if not pe.is_meta:  # torch's arange for that device takes seconds to import
            pe.copy_(sinusoidal_positions(max_len, channels))
        self.register_buffer("pe", pe)


def sinusoidal_positions(max_len: int, channels: int) -> Tensor:
    """Sine in even, cosine in odd channels (Vaswani et al. 2017): (1, max_len, channels), float32."""
    position = torch.arange(max_len, dtype=torch.float32)[:, None]
    rate = torch.exp(torch.arange(0, channels, 2, dtype=torch.float32) * (-math.log(10000.0) / channels))
    return torch.stack((torch.sin(position * rate), torch.cos(position * rate)), -1).flatten(1)[None]


class KeysValues(NamedTuple):
    """Keys and values of an attention layer, each (b, heads, tokens, channels / heads)."""

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
        """Replace the three projections by one layer three times as wide, which reads the tokens once."""
        if self.to_qkv is not None:
            return
        self.to_qkv = _concatenated(self.to_q, self.to_k, self.to_v)
        del self.to_q, self.to_k, self.to_v

    def forward(self, x: Tensor) -> Tensor:
        """(b, tokens, channels) to the same shape."""
        if self.pos_encoder is not None:
            x = x + self.pos_encoder.pe[:, : x.shape[1]]
        if self.to_qkv is None:
            query, key, value = self.to_q(x), self.to_k(x), self.to_v(x)
        else:
            query, key, value = self.to_qkv(x).chunk(3, -1)
        keys_values = KeysValues(_split_heads(key, self.heads), _split_heads(value, self.heads))
        return self.to_out[0](attend(_split_heads(query, self.heads), keys_values))


def _concatenated(*layers: nn.Linear | Int8Linear) -> nn.Linear | Int8Linear:
    """Return one layer whose outputs are those of `layers`, which have no bias, concatenated."""
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
        """Project `context` (b, context tokens, context channels) to keys and values."""
        return KeysValues(_split_heads(self.to_k(context), self.heads), _split_heads(self.to_v(context), self.heads))

    def forward(self, x: Tensor, keys_values: KeysValues) -> Tensor:
        """`x` (b, tokens, channels) to the same shape; `keys_values` of the same b."""
        return self.to_out[0](attend(_split_heads(self.to_q(x), self.heads), keys_values))

    @property
    def zero_context_output(self) -> Tensor:
        """The output for a context of zeros, whatever `x` is: (channels,). The projections have no bias."""
        bias: Tensor = self.to_out[0].bias  # type: ignore[assignment]
        return bias


def _split_heads(x: Tensor, heads: int) -> Tensor:
    """(b, tokens, channels) to (b, heads, tokens, channels / heads)."""
    return x.view(*x.shape[:2], heads, -1).transpose(1, 2)


def attend(query: Tensor, keys_values: KeysValues, max_scores: int | None = None) -> Tensor:
    """Scaled dot-product attention of `query` (b, heads, tokens, channels / heads), to (b, tokens, channels).

    max_scores: the most scores (b * heads * tokens * context tokens) of one call of torch's attention; more are
    computed in parts, by sequence and where one sequence has too many by query. None: the device's own limit.
    """
    if max_scores is None and query.device.type == "cpu":  # no limit, and none to ask about while a graph is exported
        attended = F.scaled_dot_product_attention(query, *keys_values)
        return attended.transpose(1, 2).flatten(2)
    if max_scores is None and query.device.type == "mps":
        max_scores = _MAX_SCORES_METAL
    sequences, queries = max(1, min(len(query), _MAX_SEQUENCES)), query.shape[2]
    if max_scores is not None:
        per_query = query.shape[1] * keys_values.keys.shape[2]
        sequences = max(1, min(sequences, max_scores // (per_query * queries)))
        queries = max(1, min(queries, max_scores // (per_query * sequences)))
    parts = [
        torch.cat([F.scaled_dot_product_attention(part, keys, values) for part in torch.split(q, queries, 2)], 2)
        if queries < query.shape[2]
        else F.scaled_dot_product_attention(q, keys, values)
        for q, keys, values in zip(*(torch.split(t, sequences) for t in (query, *keys_values)), strict=True)
    ]
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).transpose(1, 2).flatten(2)


class GEGLU(nn.Module):
    """Gated GELU (Shazeer 2020): a linear layer of twice the width, one half gating the other."""

    def __init__(self, channels: int, inner_channels: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels, 2 * inner_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(..., channels) to (..., inner_channels)."""
        hidden, gate = self.proj(x).chunk(2, dim=-1)
        return F.gelu(gate).mul_(hidden)  # in place: the largest activations of the U-Net


class FeedForward(nn.Module):
    """GEGLU of four times the width and a linear layer back. `net.1` is where the published code has dropout."""

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

    def forward(self, x: Tensor, audio: KeysValues, guided: bool) -> Tensor:
        """`x` (n or 2 n, h * w, channels) to (n, h * w, channels), guided to (2 n, ...): see SpatialTransformer."""
        x = x + self.attn1(self.norm1(x))
        x = self._cross_attention(x, audio, guided)
        return x + self.ff(self.norm3(x))

    def _cross_attention(self, x: Tensor, audio: KeysValues, guided: bool) -> Tensor:
        if not guided:
            return x + self.attn2(self.norm2(x), audio)
        # Where the branches split, x has as many frames as the audio, which both share; further on, twice as many.
        n = audio.keys.shape[0]
        unconditional, conditional = (x, x) if x.shape[0] == n else x.view(2, n, *x.shape[1:])
        attended = self.attn2(self.norm2(conditional), audio)
        return torch.cat((unconditional + self.attn2.zero_context_output, conditional + attended))


class SpatialTransformer(nn.Module):
    """Attention layer of one frame; its group norm is per frame."""

    def __init__(self, channels: int, config: UNetConfig) -> None:
        super().__init__()
        self.norm = PooledGroupNorm(config.norm_num_groups, channels, eps=1e-6)
        self.proj_in = nn.Conv2d(channels, channels, 1)
        block = SpatialBlock(channels, config.attention_head_dim, config.cross_attention_dim)
        self.transformer_blocks = nn.ModuleList([block])
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def keys_values(self, audio: Tensor) -> KeysValues:
        """Keys and values of `audio` (n, tokens, audio channels) for cross-attention: the same at every step."""
        return self.transformer_blocks[0].attn2.keys_values(audio)  # type: ignore[union-attr,operator]

    def forward(self, x: Tensor, audio: KeysValues, guided: bool) -> Tensor:
        """`x` (n, channels, h, w), `audio` of n frames, to the shape of `x`.

        guided: to (2 n, channels, h, w), the unconditional branch first. `x` holds both branches, or n frames that
        they still share.
        """
        hidden = self.proj_in(self.norm(x)).permute(0, 2, 3, 1)
        tokens = self.transformer_blocks[0](hidden.flatten(1, 2), audio, guided)
        tokens = tokens.unflatten(1, hidden.shape[1:3]).permute(0, 3, 1, 2)
        return in_branches(x, tokens.shape[0]) + self.proj_out(tokens)


def in_branches(x: Tensor, n: int) -> Tensor:
    """Return `x` if it has `n` frames, or `x` twice if both branches of `n` frames in all start from it."""
    # Not len(), which is a number: while a graph is exported, shape[0] may be any.
    return x if x.shape[0] == n else torch.cat((x, x))


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
        self.norm = PooledGroupNorm(32, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, channels)
        self.transformer_blocks = nn.ModuleList(
            [TemporalBlock(channels, config) for _ in range(config.num_transformer_block)]
        )
        self.proj_out = nn.Linear(channels, channels)

    def forward(self, x: Tensor, num_frames: int) -> Tensor:
        """`x` (windows * num_frames, channels, h, w) to the same shape."""
        n, c, h, w = x.shape
        windows = (n // num_frames, num_frames, h * w, c)
        # The frames stay adjacent from here to the end: only attention depends on the order of the axes.
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
    """A 3 x 3 convolution that resizes: stride 2 to downsample, after nearest-neighbour interpolation to upsample."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=stride, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Convolve `x` (n, channels, h, w), first interpolated to `size` (height, width) where that is given."""
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
