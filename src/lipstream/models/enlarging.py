"""Enlarging to twice the size and convolving, as one transposed convolution.

Nearest-neighbour enlargement repeats every pixel 2 x 2 times, so a 3 x 3 convolution after it multiplies most pixels by
several weights in turn. Their sums do the same at once: a transposed convolution of 4 x 4 weights and stride 2, which
reads the small image and takes 4 products a new pixel instead of 9. Only rounding differs.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class EnlargingConv(nn.Module):
    """A 3 x 3 convolution, padded by one, of images enlarged to twice their size."""

    merged: Tensor

    def __init__(self, conv: nn.Conv2d) -> None:
        """conv: the convolution, filled."""
        super().__init__()
        self.conv = conv
        # A transposed convolution adds what each old pixel gives to 4 x 4 new ones: the 3 x 3 weights, turned round, at
        # the four places of its copies.
        turned = conv.weight.float().flip(2, 3).transpose(0, 1)
        merged = sum(F.pad(turned, (left, 1 - left, top, 1 - top)) for left in (0, 1) for top in (0, 1))
        self.register_buffer("merged", torch.as_tensor(merged).to(conv.weight))

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """`x` (n, channels, h, w) to (n, out channels, 2 h, 2 w), or, enlarged to it instead, to `size`."""
        height, width = x.shape[-2:]
        if size is None or size == (2 * height, 2 * width):
            return F.conv_transpose2d(x, self.merged, self.conv.bias, stride=2, padding=1)
        enlarged: Tensor = self.conv(F.interpolate(x, size=size))
        return enlarged


def pays_on(device: torch.device) -> bool:
    """Whether merged convolutions are faster there: twice as fast on a CPU, not measured elsewhere."""
    return device.type == "cpu"


def merge_enlargements(network: nn.Module) -> None:
    """Put `EnlargingConv` in the places where a filled network, ours or diffusers', enlarges. 8-bit ones stay."""
    blocks: list[Any] = [module for module in network.modules() if getattr(module, "upsamplers", None)]
    for block in blocks:
        for index, upsampler in enumerate(block.upsamplers):
            if isinstance(upsampler.conv, nn.Conv2d):
                block.upsamplers[index] = EnlargingConv(upsampler.conv)
