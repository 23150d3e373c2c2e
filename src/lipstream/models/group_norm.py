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
        if x.device.type == "cpu" and x.is_contiguous(memory_format=torch.channels_last):
            pixels = x.permute(0, 2, 3, 1).reshape(n // num_frames, num_frames * h * w, c)
            variance, mean = _variance_mean_of_pixels(pixels, self.num_groups)
            weight, bias = self._affine(variance, mean)
            normed = torch.addcmul(bias[:, None], pixels, weight[:, None]).to(x.dtype)
            return normed.view(n, h, w, c).permute(0, 3, 1, 2)
        return self._over_views(x, num_frames)

    def _over_views(self, x: Tensor, num_frames: int) -> Tensor:
        """Normalise by one reduction over a view of `x` (windows * num_frames, channels, h, w), however it lies."""
        n, c, h, w = x.shape
        windows = x.view(n // num_frames, num_frames, c, h, w)
        grouped = windows.view(*windows.shape[:2], self.num_groups, c // self.num_groups, h, w).float()
        weight, bias = self._affine(*torch.var_mean(grouped, dim=(1, 3, 4, 5), correction=0))
        weight, bias = weight[:, None, :, None, None], bias[:, None, :, None, None]
        return torch.addcmul(bias, windows, weight).to(x.dtype).view_as(x)

    def _affine(self, variance: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and shift (windows, channels) that normalise groups of such variance and mean (windows, groups).

        They stay float32: rounded to half precision they cost digits where the mean is large.
        """
        per_channel = self.num_channels // self.num_groups
        weight = torch.rsqrt(variance + self.eps).repeat_interleave(per_channel, 1) * self.weight.float()
        return weight, self.bias.float() - mean.repeat_interleave(per_channel, 1) * weight


def _variance_mean_of_pixels(pixels: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Variance and mean, each (windows, groups), of (windows, pixels, channels) in float32.

    On a CPU sums over all but the channels, which lie side by side, take a fraction of var_mean's time. (torch's own
    group norm is as fast for small images and faster for large ones, but for channels-last images it takes
    mean(x^2) - mean(x)^2, which is wrong in the fourth digit at a mean of 30 deviations, and its sums depend on the
    number of threads.)
    """
    per_channel = pixels.shape[2] // groups
    shape = len(pixels), groups, per_channel
    mean = pixels.mean(1, dtype=torch.float32).view(shape).mean(2)
    deviations = pixels - mean.repeat_interleave(per_channel, 1)[:, None]
    return deviations.square().mean(1).view(shape).mean(2), mean


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
