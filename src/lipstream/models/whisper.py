"""Whisper's audio encoder (Radford et al. 2022, https://arxiv.org/abs/2212.04356), the part that is used here.

Parameter names are those of OpenAI's checkpoints below `encoder.`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lipstream.errors import ModelError

ROWS_PER_FRAME_WINDOW = 10
"""Rows of hidden states that condition one video frame (published behaviour)."""


@dataclass(frozen=True)
class AudioEncoderConfig:
    """Sizes of the encoder, named as in OpenAI's checkpoints (`dims`); the defaults are Whisper tiny.

    kernel_sizes: of the two convolutions, odd; Whisper's are 3. position_period: rows after which the positions repeat;
    a file may hold them once. Whisper's checkpoints name neither.
    """

    n_mels: int = 80
    n_audio_ctx: int = 1500
    n_audio_state: int = 384
    n_audio_head: int = 6
    n_audio_layer: int = 4
    kernel_sizes: tuple[int, int] = (3, 3)
    position_period: int | None = None

    def __post_init__(self) -> None:
        if len(self.kernel_sizes) != 2 or any(size < 1 or size % 2 == 0 for size in self.kernel_sizes):
            raise ModelError(
                f"the audio encoder's kernel_sizes {self.kernel_sizes} are not two odd numbers",
                fix="give two odd numbers, or leave kernel_sizes out",
            )

    @property
    def tokens_per_frame(self) -> int:
        """How many audio tokens condition one video frame: 50 with Whisper tiny."""
        return ROWS_PER_FRAME_WINDOW * (self.n_audio_layer + 1)

    @classmethod
    def from_dict(cls, sizes: Mapping[str, Any]) -> AudioEncoderConfig:
        """Read `dims`, leaving out the text decoder's sizes. Raises ModelError when a size is missing."""
        names = [f.name for f in fields(cls) if f.name.startswith("n_")]
        missing = [n for n in names if n not in sizes]
        if missing:
            raise ModelError(
                f"the audio encoder's sizes lack {', '.join(missing)}", fix="use Whisper's own checkpoint, tiny.pt"
            )
        first, second = sizes.get("kernel_sizes", (3, 3))
        given, period = {n: int(sizes[n]) for n in names}, sizes.get("position_period")
        return cls(**given, kernel_sizes=(int(first), int(second)), position_period=period and int(period))


class MultiHeadAttention(nn.Module):
    """Self-attention with Whisper's names; the key projection has no bias."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels, bias=False)
        self.value = nn.Linear(channels, channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(blocks, rows, channels) to the same shape."""
        query, key, value = (
            t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (self.query(x), self.key(x), self.value(x))
        )
        return self.out(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class EncoderBlock(nn.Module):
    """Pre-norm self-attention and feed-forward."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.attn = MultiHeadAttention(channels, heads)
        self.attn_ln = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels))
        self.mlp_ln = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(blocks, rows, channels) to the same shape."""
        x = x + self.attn(self.attn_ln(x))
        return x + self.mlp(self.mlp_ln(x))


class AudioEncoder(nn.Module):
    """From a block of log-mel frames to the hidden states that condition the U-Net."""

    positional_embedding: Tensor

    def __init__(self, config: AudioEncoderConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.n_audio_state
        first, second = config.kernel_sizes
        self.conv1 = nn.Conv1d(config.n_mels, channels, first, padding=first // 2)
        self.conv2 = nn.Conv1d(channels, channels, second, stride=2, padding=second // 2)
        self.register_buffer("positional_embedding", torch.zeros(config.n_audio_ctx, channels))
        self.blocks = nn.ModuleList(EncoderBlock(channels, config.n_audio_head) for _ in range(config.n_audio_layer))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.positional_embedding.device

    @property
    def dtype(self) -> torch.dtype:
        """What is computed in: that of the positions, which are never in 8 bits, unlike the weights."""
        return self.positional_embedding.dtype

    def convolve(self, mel: Tensor) -> Tensor:
        """Rows before positions: (blocks, n_mels, columns) to (blocks, columns / 2 rounded up, n_audio_state)."""
        return F.gelu(self.conv2(F.gelu(self.conv1(mel)))).transpose(1, 2)

    def forward(self, mel: Tensor) -> Tensor:
        """Encode blocks of 2 * n_audio_ctx mel frames.

        mel: (blocks, n_mels, 2 * n_audio_ctx). Returns (blocks, n_audio_ctx, n_audio_layer + 1, n_audio_state): the
        hidden states after the positions and after every block, without Whisper's final norm (published behaviour).
        """
        x = self.convolve(mel) + self.positional_embedding
        states = [x]
        for block in self.blocks:
            x = block(x)
            states.append(x)
        return torch.stack(states, 2)
