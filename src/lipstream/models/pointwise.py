"""Linear layers computed as 1 x 1 convolutions.

On a CPU torch has MKL compute float32 linear layers and oneDNN compute convolutions. MKL does not use all vector units
of processors that are not Intel's, and oneDNN takes half the time there. Only rounding differs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Of fewer images torch computes 1 x 1 convolutions itself, in one thread.
_IMAGES = 16
# With fewer rows, laying out the weights for oneDNN takes longer than it saves.
_LEAST_ROWS = 256


class PointwiseLinear(nn.Linear):
    """A linear layer; in float32 on a CPU computed as a convolution."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        return pointwise(x, self.weight, self.bias)


def pointwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Linear layer of `x` (..., in) with `weight` (out, in): (..., out)."""
    inputs, outputs = weight.shape[1], weight.shape[0]
    rows = x.numel() // inputs
    if x.dtype != torch.float32 or x.device.type != "cpu" or rows % _IMAGES or rows < _LEAST_ROWS:
        return F.linear(x, weight, bias)
    images = x.reshape(_IMAGES, rows // _IMAGES, 1, inputs).permute(0, 3, 1, 2)
    convolved = F.conv2d(images, weight.view(outputs, inputs, 1, 1), bias)
    return convolved.permute(0, 2, 3, 1).reshape(*x.shape[:-1], outputs)


def convolve_linears(network: nn.Module) -> None:
    """Put a `PointwiseLinear` with the same parameters in the place of every nn.Linear of a filled network."""
    _replace(network, nn.Linear, PointwiseLinear)


def restore_linears(network: nn.Module) -> None:
    """Undo `convolve_linears`."""
    _replace(network, PointwiseLinear, nn.Linear)


def _replace(network: nn.Module, kind: type[nn.Linear], replacement: type[nn.Linear]) -> None:
    for parent in list(network.modules()):
        for name, layer in parent.named_children():
            if type(layer) is kind:
                new = replacement(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
                new.weight, new.bias = layer.weight, layer.bias
                setattr(parent, name, new)
