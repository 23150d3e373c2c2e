"""Pixel losses and the weight map of the mouth."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lipstream.diffusion.mask import mouth_region

# Texture strength is compared over patches: small enough to separate lips from teeth, larger than single details.
_PATCH_PX = 8


def mouth_weight(size: int, gain: float) -> Tensor:
    """Return weights (1, 1, size, size): 1 far from the mouth, 1 + `gain` at its centre."""
    return (1 + gain * mouth_region(size))[None]


def laplacian(x: Tensor) -> Tensor:
    """Return the five-point Laplacian of each channel without the border: (n, c, h, w) to (n, c, h - 2, w - 2)."""
    return 4 * x[..., 1:-1, 1:-1] - x[..., :-2, 1:-1] - x[..., 2:, 1:-1] - x[..., 1:-1, :-2] - x[..., 1:-1, 2:]


def pixel_loss(predicted: Tensor, target: Tensor, weight: Tensor, laplacian_gain: float = 0.5) -> Tensor:
    """Return the weighted L1 loss of pixels and of Laplacians at two scales, a scalar.

    predicted, target: (n, 3, h, w); weight broadcasts over them.
    """
    total = ((predicted - target).abs() * weight).mean()
    inner = weight[..., 1:-1, 1:-1]
    total = total + laplacian_gain * ((laplacian(predicted) - laplacian(target)).abs() * inner).mean()
    half_predicted, half_target = F.avg_pool2d(predicted, 2), F.avg_pool2d(target, 2)
    half_weight = F.avg_pool2d(weight, 2)[..., 1:-1, 1:-1]
    return total + laplacian_gain * ((laplacian(half_predicted) - laplacian(half_target)).abs() * half_weight).mean()


def color_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Return the L1 loss of the mean colours of patches, a scalar: edges alone are learned long before colours.

    predicted, target: (n, 3, h, w).
    """
    return F.avg_pool2d(predicted - target, 2 * _PATCH_PX).abs().mean()


def chroma_loss(predicted: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Return the weighted L1 loss of colours whatever their lightness, a scalar: without it teeth turn greenish.

    predicted, target: (n, 3, h, w); weight broadcasts over them.
    """
    difference = predicted - target
    return ((difference - difference.mean(1, keepdim=True)).abs() * weight).mean()


def texture_loss(predicted: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Return the weighted L1 distance of the mean absolute Laplacians of patches, a scalar.

    predicted, target: (n, 3, h, w); weight broadcasts over them.
    """
    strengths = [
        F.avg_pool2d(laplacian(x).abs().mean(1, keepdim=True), _PATCH_PX, _PATCH_PX // 2) for x in (predicted, target)
    ]
    patches = F.avg_pool2d(weight[..., 1:-1, 1:-1], _PATCH_PX, _PATCH_PX // 2)
    return ((strengths[0] - strengths[1]).abs() * patches).mean()


def psnr_db(predicted: Tensor, target: Tensor, weight: Tensor | None = None) -> float:
    """Return the (weighted) peak signal-to-noise ratio in dB of images in [-1, 1]."""
    error = (predicted - target).square()
    if weight is not None:
        weight = weight.expand_as(error)
        mean = (error * weight).sum() / weight.sum().clamp_min(1e-6)
    else:
        mean = error.mean()
    return float(10 * torch.log10(4 / mean.clamp_min(1e-9)))
