"""Layers with 8-bit weights, and the conversion of weights to them.

int8 needs only torch and covers every linear layer and convolution: one scale per output channel, symmetric, rounded to
the nearest. Weights are converted back to the input's dtype at each call, so the arithmetic does not change; linear
layers may also convert their input to int8, one scale per row (Dettmers et al. 2022, https://arxiv.org/abs/2208.07339,
without separate outliers). float8 is for linear layers on hardware that multiplies it (Micikevicius et al. 2022,
https://arxiv.org/abs/2209.05433), one scale per tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SCALE = "weight_scale"

_INT8_MAX = 127
_FLOAT8_MAX = torch.finfo(torch.float8_e4m3fn).max
_TINY = torch.finfo(torch.float32).tiny  # the scale of weights that are all zero
# The first and last convolution of the U-Net and the VAE are not quantized: errors there reach pixels and latents
# directly, and they have few weights.
_KEPT = ("conv_in", "conv_out")
# Requirements of torch's integer and float8 matrix products on CUDA.
_FEWEST_ROWS = 17
_INT8_MULTIPLE, _FLOAT8_MULTIPLE = 8, 16
_CACHED_ROWS = 256


def quantize_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return a weight (out, ...) as int8 in the same shape, and its scales (out, 1, ...), float32.

    A channel with values that are not finite gets a scale that is not finite.
    """
    full = weight.float()
    scale = (full.abs().amax(dim=tuple(range(1, full.ndim)), keepdim=True) / _INT8_MAX).clamp_min(_TINY)
    return (full / scale).round().to(torch.int8), scale


def dequantize_weight(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Invert `quantize_weight`, in `dtype`; off by at most half a scale and the rounding of `dtype`."""
    return (weight * scale).to(dtype)


class Int8Linear(nn.Module):
    """A linear layer whose weight (out, in) is int8.

    dynamic: the input is converted to int8 too, if it has enough rows, and the product is computed in integers.
    """

    weight: Tensor
    weight_scale: Tensor

    def __init__(self, in_features: int, out_features: int, *, bias: bool, dynamic: bool) -> None:
        super().__init__()
        self.in_features, self.out_features, self.dynamic = in_features, out_features, dynamic
        self.register_buffer("weight", torch.empty(out_features, in_features, dtype=torch.int8, device="meta"))
        self.register_buffer(SCALE, torch.empty(out_features, 1, device="meta"))
        self.bias = nn.Parameter(torch.empty(out_features, device="meta")) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        if self.dynamic and _fits(x, self.in_features, self.out_features):
            return self._integer_product(x)
        return F.linear(x, dequantize_weight(self.weight, self.weight_scale, x.dtype), self.bias)

    def _integer_product(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, self.in_features).contiguous()
        y = x.new_empty(len(rows), self.out_features)
        # On a CPU in parts, so that intermediate results stay in its cache: twice as fast for wide layers.
        n = _CACHED_ROWS if x.device.type == "cpu" else len(rows)
        for part, out in zip(torch.split(rows, n), torch.split(y, n), strict=True):
            scale = (part.abs().amax(1, keepdim=True).float() / _INT8_MAX).clamp_min(_TINY)
            product = torch._int_mm((part / scale).round_().to(torch.int8), self.weight.t())
            full = (product * scale).mul_(self.weight_scale.t())
            out.copy_(full if self.bias is None else full.add_(self.bias))
        return y.view(*x.shape[:-1], self.out_features)


def _fits(x: Tensor, in_features: int, out_features: int) -> bool:
    rows = x.numel() // in_features
    return rows >= _FEWEST_ROWS and in_features % _INT8_MULTIPLE == 0 and out_features % _INT8_MULTIPLE == 0


class Int8Conv(nn.Module):
    """A convolution in one or two dimensions, padded with zeros, whose weight (out, in, ...) is int8."""

    weight: Tensor
    weight_scale: Tensor

    def __init__(self, like: nn.Conv1d | nn.Conv2d) -> None:
        super().__init__()
        shape = like.weight.shape
        self.stride, self.padding, self.dilation, self.groups = like.stride, like.padding, like.dilation, like.groups
        self._convolve: Callable[..., Tensor] = F.conv1d if len(shape) == 3 else F.conv2d
        self.register_buffer("weight", torch.empty(shape, dtype=torch.int8, device="meta"))
        self.register_buffer(SCALE, torch.empty(shape[0], *[1] * (len(shape) - 1), device="meta"))
        self.bias = None if like.bias is None else nn.Parameter(torch.empty(shape[0], device="meta"))

    def forward(self, x: Tensor) -> Tensor:
        """Convolve as the layer that this one replaces."""
        weight = dequantize_weight(self.weight, self.weight_scale, x.dtype)
        return self._convolve(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


def int8_tensors(module: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a network's tensors with the weights of linear layers and convolutions as int8, and their scales."""
    quantized = dict(tensors)
    for name, _ in _int8_layers(module):
        if f"{name}.weight" in quantized:
            quantized[f"{name}.weight"], quantized[f"{name}.{SCALE}"] = quantize_weight(quantized[f"{name}.weight"])
    return quantized


def hold_int8(module: nn.Module, *, dynamic: bool) -> None:
    """Replace linear layers and convolutions by int8 layers on the meta device. dynamic: see Int8Linear."""
    for name, layer in list(_int8_layers(module)):
        bias = layer.bias is not None
        _replace(
            module,
            name,
            Int8Linear(layer.in_features, layer.out_features, bias=bias, dynamic=dynamic)
            if isinstance(layer, nn.Linear)
            else Int8Conv(layer),
        )


def _int8_layers(module: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d) and name.rpartition(".")[2] not in _KEPT:
            yield name, layer


def _replace(module: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(module.get_submodule(parent), child, layer)


class Float8Linear(nn.Module):
    """A linear layer whose weight (out, in) is float8; its input is converted at each call."""

    weight: Tensor
    weight_scale: Tensor

    def __init__(self, like: nn.Linear) -> None:
        super().__init__()
        weight, scale = _to_float8(like.weight)
        self.register_buffer("weight", weight)
        self.register_buffer(SCALE, scale)
        self.bias = like.bias

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out), float16 or bfloat16."""
        rows, scale = _to_float8(x.reshape(-1, x.shape[-1]).contiguous())
        y = torch._scaled_mm(
            rows,
            self.weight.t(),
            scale_a=scale,
            scale_b=self.weight_scale,
            bias=self.bias,
            out_dtype=x.dtype,
            use_fast_accum=True,
        )
        return y.view(*x.shape[:-1], len(self.weight))


def _to_float8(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return a matrix in float8 and its scale, a float32 scalar; not finite where the matrix is not."""
    scale = (x.abs().amax().float() / _FLOAT8_MAX).clamp_min(_TINY)
    return (x.float() / scale).to(torch.float8_e4m3fn), scale


def hold_float8(module: nn.Module) -> None:
    """Replace the linear layers of a filled network whose sizes are multiples of 16 by float8 layers."""
    for name, layer in list(module.named_modules()):
        if isinstance(layer, nn.Linear) and all(n % _FLOAT8_MULTIPLE == 0 for n in layer.weight.shape):
            _replace(module, name, Float8Linear(layer))
