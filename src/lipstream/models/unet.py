"""The video U-Net of LatentSync: Stable Diffusion 1.5's shape with motion modules between the frames.

Everything is laid out as (frames, channels, height, width), in the memory format of the weights; windows of a batch
lie one after another along the frame axis. Module and parameter names are those of the published checkpoint, so that
its state dict loads as it is. What does not change over the denoising steps is computed once, by `UNet.prepare`, and
passed to every `UNet.step`. Sources: Rombach et al. 2022 (https://arxiv.org/abs/2112.10752), Guo et al. 2023
(AnimateDiff, https://arxiv.org/abs/2307.04725), Li et al. 2024 (LatentSync, https://arxiv.org/abs/2412.09262).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lipstream.models.group_norm import PooledGroupNorm
from lipstream.models.unet_config import UNetConfig
from lipstream.models.unet_layers import (
    KeysValues,
    MotionModule,
    Resample,
    ResnetBlock,
    SelfAttention,
    SpatialTransformer,
    TimeEmbedding,
    in_branches,
)


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

    def keys_values(self, audio: Tensor) -> dict[str, KeysValues]:
        """Cross-attention keys and values of `audio` (n, tokens, audio channels), by layer."""
        return {
            name: attention.keys_values(audio)  # type: ignore[operator]
            for name, attention in self.attentions.items()
        }

    def layer(
        self, index: int, x: Tensor, time: Tensor, audio: Mapping[str, KeysValues], num_frames: int, guided: bool
    ) -> Tensor:
        """Run layer `index` without the parts that were pruned; `x` (windows * num_frames, channels, h, w).

        guided: the result has two branches, see UNet.step.
        """
        name = str(index)
        x = self.resnets[index](x, time, num_frames)
        if name in self.attentions:
            x = self.attentions[name](x, audio[name], guided)
        if name in self.motion_modules:
            x = self.motion_modules[name](x, num_frames)
        return x


class MidBlock(Block):
    """The middle: a ResNet block, then attention and a second ResNet block."""

    def __init__(self, channels: int, config: UNetConfig) -> None:
        pair = [(channels, channels)]
        super().__init__(pair, config, attention=True, motion=config.motion_module_mid_block, scale=None)
        self.resnets.append(ResnetBlock(channels, channels, config))

    def forward(
        self, x: Tensor, time: Tensor, audio: Mapping[str, KeysValues], num_frames: int, guided: bool
    ) -> Tensor:
        """`x` (windows * num_frames, channels, h, w) to the same shape; guided: see UNet.step."""
        return self.resnets[1](self.layer(0, x, time, audio, num_frames, guided), time, num_frames)


@dataclass(frozen=True)
class Prepared:
    """The part of the U-Net's work that is the same at every step, for consecutive windows of `num_frames` frames.

    conv_in_features: (windows * num_frames, block_out_channels[0], h, w), the first convolution of all channels but the
    noisy latents. audio: cross-attention keys and values, one entry per block (down, mid, up), by layer.
    """

    conv_in_features: Tensor
    audio: tuple[dict[str, KeysValues], ...]
    num_frames: int


# The signature of UNet.step and of what may replace it: latents, timestep, prepared, guided, deep features.
Step = Callable[[Tensor, Tensor, Prepared, bool, Tensor | None], tuple[Tensor, Tensor]]


class UNet(nn.Module):
    """Predicts the noise (or what the model's scheduler expects) of windows of frames."""

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
        """Run one step with nothing prepared.

        sample: (windows * num_frames, in_channels, height, width): noisy latents, then what conditions them.
        audio: (windows * num_frames, tokens, cross_attention_dim). timestep and return: see `step`.
        """
        noisy = self.config.out_channels
        return self.step(sample[:, :noisy], timestep, self.prepare(sample[:, noisy:], audio, num_frames))[0]

    def prepare(self, channels: Tensor, audio: Tensor, num_frames: int) -> Prepared:
        """Compute what is the same at every step.

        channels: (windows * num_frames, in_channels - out_channels, height, width), the conditioning of the latents.
        audio: (windows * num_frames, tokens, cross_attention_dim).
        """
        return Prepared(self.conv_in_features(channels), self.audio_keys_values(audio), num_frames)

    def conv_in_features(self, channels: Tensor) -> Tensor:
        """Apply the first convolution to all channels but the noisy latents; see Prepared."""
        weight = self.conv_in.weight[:, self.config.out_channels :]
        return F.conv2d(channels, weight, self.conv_in.bias, padding=1)

    def audio_keys_values(self, audio: Tensor) -> tuple[dict[str, KeysValues], ...]:
        """Project audio to the keys and values of every cross-attention; see Prepared."""
        return tuple(block.keys_values(audio) for block in self.blocks())

    def step(
        self, latents: Tensor, timestep: Tensor, prepared: Prepared, guided: bool = False, deep: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Predict the noise of one denoising step.

        latents: (windows * num_frames, out_channels, height, width). timestep: a scalar, or one per window. Returns the
        prediction, in the shape and dtype of `latents`, and the deep features. guided: both have twice as many frames,
        first the unconditional branch (zeros for audio), then the conditional one. The branches are computed as one up
        to the first cross-attention, where they split; in a model without cross-attention they are the same.

        deep: the deep features that another step of the same windows returned, with the same `guided`. They change
        slowly from step to step (Ma et al. 2023, DeepCache, https://arxiv.org/abs/2312.00858); with them only the first
        convolution and the last up layer, which share the outermost skip connection, are computed.
        """
        num_frames = prepared.num_frames
        features, time = self._begin(latents, timestep, prepared)
        if deep is None:
            deep = self._deep(features, time, prepared, guided)
        last: Block = self.up_blocks[-1]  # type: ignore[assignment]
        x = torch.cat((deep, in_branches(features, deep.shape[0])), 1)
        x = last.layer(len(last.resnets) - 1, x, time, prepared.audio[-1], num_frames, guided)
        predicted = self.conv_out(F.silu(self.conv_norm_out(x, num_frames)))
        return torch.cat((predicted, predicted)) if guided and not self.uses_audio else predicted, deep

    def deep_features(self, latents: Tensor, timestep: Tensor, prepared: Prepared, guided: bool) -> Tensor:
        """Compute the deep features alone: see `step`."""
        features, time = self._begin(latents, timestep, prepared)
        return self._deep(features, time, prepared, guided)

    def _begin(self, latents: Tensor, timestep: Tensor, prepared: Prepared) -> tuple[Tensor, Tensor]:
        """Return the first convolution's output for all channels, and the embedded timestep."""
        weight = self.conv_in.weight[:, : self.config.out_channels]
        features = prepared.conv_in_features + F.conv2d(latents, weight, padding=1)
        return features, self._embed_time(timestep, latents, prepared.num_frames)

    def _deep(self, features: Tensor, time: Tensor, prepared: Prepared, guided: bool) -> Tensor:
        """Compute the input of the last up layer from `features`, the output of the first convolution."""
        num_frames, levels = prepared.num_frames, len(self.down_blocks)
        x, skips = features, [features]
        for block, audio in zip(self._down(), prepared.audio[:levels], strict=True):
            for i in range(len(block.resnets)):
                x = block.layer(i, x, time, audio, num_frames, guided)
                skips.append(x)
            if block.downsamplers is not None:
                x = block.downsamplers[0](x)
                skips.append(x)
        x = self.mid_block(x, time, prepared.audio[levels], num_frames, guided)
        for block, audio in zip(self._up(), prepared.audio[levels + 1 :], strict=True):
            is_last = block is self.up_blocks[-1]
            for i in range(len(block.resnets) - is_last):
                x = torch.cat((x, in_branches(skips.pop(), x.shape[0])), 1)
                x = block.layer(i, x, time, audio, num_frames, guided)
            if block.upsamplers is not None:
                height, width = skips[-1].shape[-2:]
                x = block.upsamplers[0](x, size=(height, width))
        return x

    @property
    def uses_audio(self) -> bool:
        """Whether any layer attends to audio."""
        return any(block.attentions for block in self.blocks())

    def blocks(self) -> tuple[Block, ...]:
        """Return the blocks in the order in which they are computed: down, middle, up."""
        return (*self._down(), self.mid_block, *self._up())

    def fuse_projections(self) -> None:
        """Fuse the query, key and value projections of every self-attention.

        For inference, after loading: the state dict no longer has the published names.
        """
        for module in self.modules():
            if isinstance(module, SelfAttention):
                module.fuse_projections()

    def _down(self) -> Iterable[Block]:
        return cast(Iterable[Block], self.down_blocks)

    def _up(self) -> Iterable[Block]:
        return cast(Iterable[Block], self.up_blocks)

    def _embed_time(self, timestep: Tensor, latents: Tensor, num_frames: int) -> Tensor:
        """(1, time channels) for a scalar, (windows * num_frames, time channels) for one per window."""
        half = self.config.block_out_channels[0] // 2
        index = torch.arange(half, dtype=torch.float32, device=latents.device)
        rate = torch.exp(index * (-math.log(10000.0) / (half - self.config.freq_shift)))
        angle = timestep.to(latents.device).float().reshape(-1, 1) * rate
        halves = (torch.cos(angle), torch.sin(angle))
        wave = torch.cat(halves if self.config.flip_sin_to_cos else halves[::-1], -1).to(latents.dtype)
        time = self.time_embedding(wave)
        return time if timestep.ndim == 0 else time[:, None].expand(-1, num_frames, -1).flatten(0, 1)
