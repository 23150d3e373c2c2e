"""The frame's own texture, where the repainted face agrees with it.

A face generated at the model's resolution has lost pores, stubble and hair, most of them where nothing was to change.
So blurred pictures of both are compared: where they agree, finer detail is the frame's own, as sharp as it was filmed;
where they differ (the mouth, a jaw that moved) it is the model's. Not part of the published computation.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from lipstream.diffusion.mask import mouth_region
from lipstream.imaging import gaussian_kernel

# Of the blur that parts coarse from fine, as a share of the crop's side.
_SIGMA = 2.5 / 128
# A difference of coarse pictures, of 2 from black to white, at which three fifths of the texture are the model's. In
# the mouth, where teeth and lips of the frame would shine through, and elsewhere.
_MOUTH_TOLERANCE, _TOLERANCE = 0.04, 0.3
# How far round a difference the texture is the model's too, as a share of the side: lips end where they look like skin.
_REACH = 2 / 128


def keep_texture(generated: Tensor, pixels: Tensor, mask: Tensor) -> Tensor:
    """Return what to add to the frame, and the frame's share: (n, 4, res, res), for `paste_face`.

    generated: new crops; pixels: the crops as filmed; both (n, 3, res, res) in [-1, 1]. mask: (1, res, res), 1 = keep.
    The fourth channel is the share w of the frame in [0, 1], 1 where the mask keeps it; the first three are the new
    face less w times the crop, so that w times the frame completes them.
    """
    side = pixels.shape[-1]
    coarse_generated, coarse = _coarse(generated, side * _SIGMA), _coarse(pixels, side * _SIGMA)
    reach = round(side * _REACH)
    difference = (coarse_generated - coarse).abs().amax(1, keepdim=True) * (1 - mask)
    difference = F.max_pool2d(difference, 2 * reach + 1, 1, reach)
    tolerance = _TOLERANCE + (_MOUTH_TOLERANCE - _TOLERANCE) * mouth_region(side).to(mask.device)
    share = torch.exp(-(_coarse(difference, side * _SIGMA) / tolerance).square())
    textured = torch.lerp(generated, coarse_generated + (pixels - coarse), share)
    return torch.cat((textured - share * pixels, share), 1)


def _coarse(images: Tensor, sigma: float) -> Tensor:
    """Return images (n, c, h, h) blurred with a Gaussian, edges replicated."""
    blur = _blur_matrix(images.shape[-1], sigma, images.device)
    return torch.matmul(blur, torch.matmul(images.contiguous(), blur.t()))


@functools.lru_cache(maxsize=8)
def _blur_matrix(size: int, sigma: float, device: torch.device) -> Tensor:
    """Return what takes an axis of `size` pixels to the blurred one, (size, size).

    Most of it is zero, and yet two products with it are five times as fast as convolutions with one channel on a CPU.
    """
    radius = round(3 * sigma)
    kernel = gaussian_kernel(radius, sigma, device)
    index = torch.arange(-radius, size + radius, device=device).clamp(0, size - 1).unfold(0, 2 * radius + 1, 1)
    return torch.zeros(size, size, device=device).scatter_add_(1, index, kernel.expand(size, -1))
