"""Group norm in float32 arithmetic that keeps the memory format of its input."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PooledGroupNorm(nn.GroupNorm):
    """Group norm over all frames of a window (published behaviour in ResNet blocks), computed in float32.

    Keeps the memory format of its input, where CUDA's own group norm returns channels-last input as contiguous
    (https://github.com/pytorch/pytorch/issues/111824). Takes the place of nn.GroupNorm as it is: one frame a window.
    """

    def forward(self, x: Tensor, num_frames: int = 1) -> Tensor:
        """Normalise `x` (windows * num_frames, channels, ...) to the same shape and dtype."""
        if x.ndim != 4:
            return self.forward(x.reshape(*x.shape[:2], -1, 1), num_frames).view_as(x)
        n, c, h, w = x.shape
        per_channel = c // self.num_groups
        windows = x.view(n // num_frames, num_frames, c, h, w)
        variance, mean = _variance_mean(windows.view(*windows.shape[:2], self.num_groups, per_channel, h, w).float())
        weight = torch.rsqrt(variance + self.eps).repeat_interleave(per_channel, 1) * self.weight.float()
        bias = self.bias.float() - mean.repeat_interleave(per_channel, 1) * weight
        weight, bias = weight[:, None, :, None, None], bias[:, None, :, None, None]
        # Scale and shift stay float32: rounded to half precision they cost digits where the mean is large.
        return torch.addcmul(bias, windows, weight).to(x.dtype).view_as(x)


def _variance_mean(grouped: Tensor) -> tuple[Tensor, Tensor]:
    """Variance and mean, each (windows, groups), of (windows, frames, groups, channels per group, h, w), float32."""
    if grouped.device.type != "cpu":
        return torch.var_mean(grouped, dim=(1, 3, 4, 5), correction=0)
    # On a CPU sums over all but the channels take a tenth of var_mean's time. (torch's own group norm is faster still,
    # but for channels-last images it takes mean(x^2) - mean(x)^2, which is wrong in the fourth digit at a mean of 30
    # deviations, and its sums depend on the number of threads.)
    pixels = (1, 4, 5)
    mean = grouped.mean(pixels, keepdim=True).mean(3, keepdim=True)
    variance = (grouped - mean).square().mean(pixels).mean(2)
    return variance, mean.view_as(variance)


def replace_group_norms(network: nn.Module) -> None:
    """Put a `PooledGroupNorm` with the same parameters in the place of every nn.GroupNorm of a filled network."""
    replace_norms(network, nn.GroupNorm, PooledGroupNorm)


def replace_norms(network: nn.Module, kind: type[nn.GroupNorm], replacement: type[nn.GroupNorm]) -> None:
    """Put a `replacement` with the same parameters in the place of every group norm that is exactly of `kind`."""
    for parent in list(network.modules()):
        for name, norm in parent.named_children():
            if type(norm) is kind:
                new = replacement(norm.num_groups, norm.num_channels, norm.eps, device="meta")
                new.weight, new.bias = norm.weight, norm.bias
                setattr(parent, name, new)
