"""The networks cut into the graphs that a Triton server holds: a whole step of the U-Net is one call.

Between processes it costs more to send what every step needs again than to compute it again. Counted for a window of
the published U-Net at 512 px in fp16: keys, values and the first convolution's features are 82 MB a step, and the
guided deep features as much again; latents, conditioning and audio, which are sent here, are 2.3 MB, and computing the
rest from them takes 0.1 % of a step's operations.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from lipstream.engines.graphs import (
    AUDIO_ENCODER,
    VAE_DECODER,
    VAE_ENCODER,
    Graph,
    by_window,
)
from lipstream.models.unet import UNet

_WINDOWS, _FRAMES = 2, 3


def step_graph(guided: bool) -> str:
    """Return the name of the graph of a whole step."""
    return "unet_guided" if guided else "unet"


SERVED = (step_graph(False), step_graph(True), VAE_ENCODER, VAE_DECODER, AUDIO_ENCODER)


class WholeStep(nn.Module):
    """A step of the U-Net, nothing prepared. The first axis of each input and of the output is that of the windows."""

    def __init__(self, unet: UNet, guided: bool) -> None:
        super().__init__()
        self.unet, self.guided = unet, guided

    def forward(self, latents: Tensor, timestep: Tensor, channels: Tensor, audio: Tensor) -> Tensor:
        """Return (windows, frames, C, h, w); guided: (windows, 2, frames, C, h, w), the branch without audio first.

        latents: (windows, frames, C, h, w). timestep: (windows, 1). channels: (windows, frames, 1 + 2 C, h, w).
        audio: (windows, frames, tokens, dim).
        """
        frames = latents.shape[1]
        prepared = self.unet.prepare(channels.flatten(0, 1), audio.flatten(0, 1), frames)
        predicted, _ = self.unet.step(latents.flatten(0, 1), timestep.flatten(), prepared, self.guided)
        if not self.guided:
            return by_window(predicted, frames)
        return predicted.reshape(2, *latents.shape).transpose(0, 1)


def step_graphs(unet: UNet, size: int, tokens: int) -> Iterator[Graph]:
    """Yield the graphs of a step, for latents of `size` x `size` and `tokens` audio tokens per frame."""
    config, like = unet.config, unet.conv_in.weight
    shape, axes = (_WINDOWS, _FRAMES), {0: "windows", 1: "frames"}
    inputs = {
        "latents": torch.zeros((*shape, config.out_channels, size, size)).to(like),
        "timestep": torch.full((_WINDOWS, 1), 500.0),
        "channels": torch.zeros((*shape, config.in_channels - config.out_channels, size, size)).to(like),
        "audio": torch.zeros((*shape, tokens, config.cross_attention_dim)).to(like),
    }
    free = dict.fromkeys(inputs, axes) | {"timestep": {0: "windows"}}
    longest = {"frames": config.motion_module_kwargs.temporal_position_encoding_max_len}
    for guided in (False, True):
        yield Graph(step_graph(guided), WholeStep(unet, guided), inputs, ("predicted",), free, longest)
