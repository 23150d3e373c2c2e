"""The video U-Net of LatentSync: Stable Diffusion 1.5's shape with motion modules between the frames.

Everything is laid out as (frames, channels, height, width), in the memory format of the weights; windows of a batch
lie one after another along the frame axis. Module and parameter names are those of the published checkpoint, so that
its state dict loads as it is. What does not change over the denoising steps is computed once, by `UNet.prepare`, and
handed to every `UNet.step`. Sources: Rombach et al. 2022 (https://arxiv.org/abs/2112.10752), Guo et al. 2023
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

from lipstream.models.unet_config import UNetConfig
from lipstream.models.unet_layers import (
    KeysValues,
    MotionModule,
    PooledGroupNorm,
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

    def hear(self, audio: Tensor) -> dict[str, KeysValues]:
        """What the block's attentions hear of `audio` (n, tokens, audio channels), by layer."""
        return {name: attention.hear(audio) for name, attention in self.attentions.items()}  # type: ignore[operator]

    def layer(
        self, index: int, x: Tensor, time: Tensor, heard: Mapping[str, KeysValues], num_frames: int, guided: bool
    ) -> Tensor:
        """Layer `index` of the block, as far as the model has its parts; `x` (windows * num_frames, channels, h, w).

        guided: `x` comes out in two branches, see UNet.step.
        """
        name = str(index)
        x = self.resnets[index](x, time, num_frames)
        if name in self.attentions:
            x = self.attentions[name](x, heard[name], guided)
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
        self, x: Tensor, time: Tensor, heard: Mapping[str, KeysValues], num_frames: int, guided: bool
    ) -> Tensor:
        """`x` (windows * num_frames, channels, h, w) to the same shape; guided: see UNet.step."""
        return self.resnets[1](self.layer(0, x, time, heard, num_frames, guided), time, num_frames)


@dataclass(frozen=True)
class Prepared:
    """All of a U-Net's work that stays the same over the steps, for windows of `num_frames` frames on end.

    first: (windows * num_frames, block_out_channels[0], h, w), what the first convolution makes of every channel but
    the noisy latents. heard: what the audio layers hear, one entry a block (downwards, middle, upwards), by layer.
    """

    first: Tensor
    heard: tuple[dict[str, KeysValues], ...]
    num_frames: int


# What UNet.step does, whoever does it: latents, timestep, what is prepared, whether guided, deep features.
Step = Callable[[Tensor, Tensor, Prepared, bool, Tensor | None], tuple[Tensor, Tensor]]


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
        """One step with nothing prepared.

        sample: (windows * num_frames, in_channels, height, width): noisy latents, then what conditions them.
        audio: (windows * num_frames, tokens, cross_attention_dim). timestep and return: see `step`.
        """
        noisy = self.config.out_channels
        return self.step(sample[:, :noisy], timestep, self.prepare(sample[:, noisy:], audio, num_frames))[0]

    def prepare(self, channels: Tensor, audio: Tensor, num_frames: int) -> Prepared:
        """What stays the same over the steps.

        channels: (windows * num_frames, in_channels - out_channels, height, width), what conditions the latents.
        audio: (windows * num_frames, tokens, cross_attention_dim).
        """
        return Prepared(self.first(channels), self.hear(audio), num_frames)

    def first(self, channels: Tensor) -> Tensor:
        """The first convolution of all channels but the noisy latents; see Prepared."""
        weight = self.conv_in.weight[:, self.config.out_channels :]
        return F.conv2d(channels, weight, self.conv_in.bias, padding=1)

    def hear(self, audio: Tensor) -> tuple[dict[str, KeysValues], ...]:
        """What the audio layers hear; see Prepared."""
        return tuple(block.hear(audio) for block in (*self._down(), self.mid_block, *self._up()))

    def step(
        self, latents: Tensor, timestep: Tensor, prepared: Prepared, guided: bool = False, deep: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Denoise windows of frames once.

        latents: (windows * num_frames, out_channels, height, width). timestep: a scalar; without guidance also one a
        window. Returns the prediction, in the shape and dtype of `latents`, and the deep features. guided: both have
        twice as many frames, first what is predicted without audio (zeros in its place), then with it. The two
        branches are computed as one up to the first layer that hears audio, where they part; in a model without such
        layers they are the same.

        deep: the deep features that another step of the same windows returned, guided alike. They change slowly from
        step to step (Ma et al. 2023, DeepCache, https://arxiv.org/abs/2312.00858); with them only the first
        convolution and the last layer upwards, which share the outermost skip connection, are computed.
        """
        num_frames = prepared.num_frames
        time = self._embed_time(timestep, latents, num_frames)
        weight = self.conv_in.weight[:, : self.config.out_channels]
        first = prepared.first + F.conv2d(latents, weight, padding=1)
        if deep is None:
            deep = self._deep(first, time, prepared, guided)
        last: Block = self.up_blocks[-1]  # type: ignore[assignment]
        x = torch.cat((deep, in_branches(first, len(deep))), 1)
        x = last.layer(len(last.resnets) - 1, x, time, prepared.heard[-1], num_frames, guided)
        predicted = self.conv_out(F.silu(self.conv_norm_out(x, num_frames)))
        nothing_heard = not any(prepared.heard)
        return torch.cat((predicted, predicted)) if guided and nothing_heard else predicted, deep

    def _deep(self, first: Tensor, time: Tensor, prepared: Prepared, guided: bool) -> Tensor:
        """What the last layer upwards is given beside `first`, what the first convolution makes."""
        num_frames, levels = prepared.num_frames, len(self.down_blocks)
        x, skips = first, [first]
        for block, heard in zip(self._down(), prepared.heard[:levels], strict=True):
            for i in range(len(block.resnets)):
                x = block.layer(i, x, time, heard, num_frames, guided)
                skips.append(x)
            if block.downsamplers is not None:
                x = block.downsamplers[0](x)
                skips.append(x)
        x = self.mid_block(x, time, prepared.heard[levels], num_frames, guided)
        for block, heard in zip(self._up(), prepared.heard[levels + 1 :], strict=True):
            is_last = block is self.up_blocks[-1]
            for i in range(len(block.resnets) - is_last):
                x = torch.cat((x, in_branches(skips.pop(), len(x))), 1)
                x = block.layer(i, x, time, heard, num_frames, guided)
            if block.upsamplers is not None:
                height, width = skips[-1].shape[-2:]
                x = block.upsamplers[0](x, size=(height, width))
        return x

    @property
    def hears(self) -> bool:
        """Whether any layer hears audio."""
        return any(block.attentions for block in (*self._down(), self.mid_block, *self._up()))

    def fuse_projections(self) -> None:
        """Fuse queries, keys and values of every self-attention; the state dict's names are then no longer published.

        For a model that is filled and only runs: called once, after loading.
        """
        for module in self.modules():
            if isinstance(module, SelfAttention):
                module.fuse_projections()

    def _down(self) -> Iterable[Block]:
        return cast(Iterable[Block], self.down_blocks)

    def _up(self) -> Iterable[Block]:
        return cast(Iterable[Block], self.up_blocks)

    def _embed_time(self, timestep: Tensor, latents: Tensor, num_frames: int) -> Tensor:
        """(1, time channels) for a scalar, (windows * num_frames, time channels) for one a window."""
        half = self.config.block_out_channels[0] // 2
        index = torch.arange(half, dtype=torch.float32, device=latents.device)
        rate = torch.exp(index * (-math.log(10000.0) / (half - self.config.freq_shift)))
        angle = timestep.to(latents.device).float().reshape(-1, 1) * rate
        halves = (torch.cos(angle), torch.sin(angle))
        wave = torch.cat(halves if self.config.flip_sin_to_cos else halves[::-1], -1).to(latents.dtype)
        time = self.time_embedding(wave)
        return time if timestep.ndim == 0 else time.repeat_interleave(num_frames, 0)
