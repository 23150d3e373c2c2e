"""Linear layers and 1 x 1 convolutions as oneDNN computes them.

On a CPU torch has MKL compute float32 linear layers, and 1 x 1 convolutions of a few images in one thread. MKL does not
use all vector units of processors that are not Intel's; oneDNN takes half the time there. Only rounding differs.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Of at least so many images torch always has oneDNN compute a convolution.
_IMAGES = 16
# With fewer pixels, laying out the weights for oneDNN takes longer than it saves.
_LEAST_PIXELS = 256


class PointwiseLinear(nn.Linear):
    """A linear layer; in float32 on a CPU computed as a convolution."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        return pointwise(x, self.weight, self.bias)


class PointwiseConv(nn.Conv2d):
    """A 1 x 1 convolution of stride 1; in float32 on a CPU computed as of more images."""

    def forward(self, x: Tensor) -> Tensor:
        """(n, in, h, w) to (n, out, h, w)."""
        if len(x) >= _IMAGES or not x.is_contiguous(memory_format=torch.channels_last):
            return super().forward(x)
        return pointwise(x.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


def pointwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Linear layer of `x` (..., in) with `weight` (out, in): (..., out)."""
    outputs, inputs = weight.shape
    pixels = x.numel() // inputs
    if x.dtype != torch.float32 or x.device.type != "cpu" or pixels % _IMAGES or pixels < _LEAST_PIXELS:
        return F.linear(x, weight, bias)
    images = x.reshape(_IMAGES, pixels // _IMAGES, 1, inputs).permute(0, 3, 1, 2)
    convolved = F.conv2d(images, weight.view(outputs, inputs, 1, 1), bias)
    return convolved.permute(0, 2, 3, 1).reshape(*x.shape[:-1], outputs)


def use_pointwise_layers(network: nn.Module) -> None:
    """Put layers of here with the same parameters in the place of those of a filled network that compute the same."""
    for parent, name, layer in _children(network):
        if type(layer) is nn.Linear:
            sizes = layer.in_features, layer.out_features
            _replace(parent, name, PointwiseLinear(*sizes, bias=layer.bias is not None, device="meta"))
        elif type(layer) is nn.Conv2d and (layer.kernel_size, layer.stride, layer.groups) == ((1, 1), (1, 1), 1):
            sizes = layer.in_channels, layer.out_channels
            _replace(parent, name, PointwiseConv(*sizes, 1, bias=layer.bias is not None, device="meta"))


def restore_layers(network: nn.Module) -> None:
    """Undo `use_pointwise_layers`."""
    for parent, name, layer in _children(network):
        if type(layer) is PointwiseLinear:
            sizes = layer.in_features, layer.out_features
            _replace(parent, name, nn.Linear(*sizes, bias=layer.bias is not None, device="meta"))
        elif type(layer) is PointwiseConv:
            sizes = layer.in_channels, layer.out_channels
            _replace(parent, name, nn.Conv2d(*sizes, 1, bias=layer.bias is not None, device="meta"))


def _children(network: nn.Module) -> list[tuple[nn.Module, str, Any]]:
    return [(parent, name, child) for parent in network.modules() for name, child in parent.named_children()]


def _replace(parent: nn.Module, name: str, new: Any) -> None:
    old = getattr(parent, name)
    new.weight, new.bias = old.weight, old.bias
    setattr(parent, name, new)
