"""The frame's own colour and light on the generated face.

A model may generate skin a shade redder than the frame's, a neck that changes from frame to frame, another light on a
wall. So the generated crop is compared with the frame's on a coarse grid, and the difference, blurred, is added back.
Where the two differ much, a jaw has moved: such places, and the mouth, take their correction from those round them, and
teeth its light alone: what makes skin less red makes teeth green. Not part of the published computation.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lipstream.diffusion.mask import mouth_region
from lipstream.imaging import gaussian_blur

_GRID = 32  # cells a side
# Blurs of the difference, in cells: radius and sigma. The wide one fills in where no cell near is comparable.
_NEAR, _WIDE = (5, 1.5), (15, 5.0)
_WIDE_WEIGHT = 0.02
# A difference, of 2 from black to white, at which a cell counts for a third.
_TOLERANCE = 0.3
# Teeth are pale, and not the frame's: a difference of a pixel's channels, of 2, at which it counts for a third as pale
# (of lips and skin it is about 0.5), and one between the matched pixel and the frame's at which it does as the frame's.
_COLORLESS, _SAME = 0.35, 0.05
_LEAST = 1e-3  # of the weight that is divided by


def match_color(generated: Tensor, pixels: Tensor) -> Tensor:
    """Return the generated crops with the colour and light of the crops as filmed.

    generated, pixels: (n, 3, res, res) in [-1, 1]; so is the result, float32. Every frame is matched by itself.
    """
    side = generated.shape[-1]
    difference = F.interpolate(pixels.float() - generated.float(), size=(_GRID, _GRID), mode="area")
    weight = _near_zero(difference.abs().amax(1, keepdim=True), _TOLERANCE)
    weight = weight * (1 - mouth_region(_GRID).to(weight.device)).square()
    wide = gaussian_blur(difference * weight, *_WIDE) / gaussian_blur(weight, *_WIDE).clamp_min(_LEAST)
    near = gaussian_blur(weight, *_NEAR)
    correction = (gaussian_blur(difference * weight, *_NEAR) + _WIDE_WEIGHT * wide) / (near + _WIDE_WEIGHT)
    smooth = F.interpolate(correction, size=(side, side), mode="bilinear", align_corners=False)
    matched = generated + smooth
    is_pale = _near_zero(generated.amax(1, keepdim=True) - generated.amin(1, keepdim=True), _COLORLESS)
    is_new = 1 - _near_zero((matched - pixels).abs().amax(1, keepdim=True), _SAME)
    teeth = is_pale * is_new * mouth_region(side).to(smooth.device)
    return torch.lerp(matched, generated + smooth.mean(1, keepdim=True), teeth)


def _near_zero(difference: Tensor, tolerance: float) -> Tensor:
    """Return 1 for no difference, a third for one of `tolerance`, 0 for larger ones."""
    return torch.exp(-(difference.float() / tolerance).square())
