"""Animate portraits by warping the mouth, as training data with many faces.

Geometry is in pixels of an aligned crop; points are MediaPipe's face mesh. The jaw's outline outside the repainted
region never moves, so that nothing outside reveals the opening.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lipstream_lab.train.interiors import Filmed, Interior, Opened, sample

# Mesh points: inner lips from the left corner to the right one, chin, nose base, forehead.
UPPER_INNER = (78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308)
LOWER_INNER = (78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308)
CHIN, NOSE_BASE, FOREHEAD = 152, 2, 10
UPPER_OUTER, LOWER_OUTER = 0, 17

# Gap of a fully open mouth, as a share of the face's height; the lower lip moves most.
FULL_GAP = 0.085
_LOWER_SHARE = 0.85


@dataclass(frozen=True)
class Mouth:
    """Mouth geometry in pixels.

    upper, lower: (width,) y of the inner lips per column, equal at and beyond the corners. left, right: x of the
    corners.
    """

    upper: Tensor
    lower: Tensor
    left: float
    right: float
    nose_base: float
    upper_outer: float
    lower_outer: float
    chin: float
    face_height: float

    @classmethod
    def from_mesh(cls, points: NDArray[np.floating[Any]], width: int) -> Mouth:
        """Return the geometry for mesh points (478, 2) in pixels of a crop `width` wide."""
        columns = np.arange(width)
        lines = []
        for indices in (UPPER_INNER, LOWER_INNER):
            line = points[list(indices)]
            order = np.argsort(line[:, 0])
            lines.append(np.interp(columns, line[order, 0], line[order, 1]))
        upper, lower = np.minimum(lines[0], lines[1]), np.maximum(lines[0], lines[1])
        return cls(
            upper=torch.from_numpy(upper).float(),
            lower=torch.from_numpy(lower).float(),
            left=float(points[UPPER_INNER[0], 0]),
            right=float(points[UPPER_INNER[-1], 0]),
            nose_base=float(points[NOSE_BASE, 1]),
            upper_outer=float(points[UPPER_OUTER, 1]),
            lower_outer=float(points[LOWER_OUTER, 1]),
            chin=float(points[CHIN, 1]),
            face_height=float(np.linalg.norm(points[CHIN] - points[FOREHEAD])),
        )


def skin_beside_nose(image: Tensor, mouth: Mouth) -> Tensor:
    """Return the mean colour (3,) of a patch of skin beside the nose. image: (3, h, w)."""
    reach = image.shape[-1] // 25
    y, x = int(mouth.nose_base), int(mouth.left)
    return image[:, y - reach : y + reach, max(x - 2 * reach, 0) : x + reach // 2].mean((1, 2))


def cut_interior(image: Tensor, mouth: Mouth) -> Filmed | None:
    """Cut out the inside of an open mouth; None if it is nearly shut. image: (3, h, w) in [0, 1]."""
    corners, full_gap = (mouth.left, mouth.right), FULL_GAP * mouth.face_height
    return Filmed.cut(image, mouth.upper, mouth.lower, corners, full_gap, skin_beside_nose(image, mouth))


def render(crop: Tensor, mouth: Mouth, interior: Interior, opening: float, width: float) -> Tensor:
    """Render the crop with another mouth `opening` (0 shut, 1 fully open) and `width` (1 unchanged): (3, h, w).

    crop: (3, h, w) in [0, 1].
    """
    _, h, w = crop.shape
    y = torch.arange(h).float()[:, None].expand(h, w)
    x = torch.arange(w).float()[None, :].expand(h, w)
    x_source = _narrowed(x, y, mouth, width)
    upper, lower = _at(mouth.upper, x_source), _at(mouth.lower, x_source)

    centre, half = (mouth.left + mouth.right) / 2, max((mouth.right - mouth.left) / 2, 1.0)
    inside = (1 - ((x_source - centre) / half).square()).clamp_min(0).sqrt()
    gap = opening * FULL_GAP * mouth.face_height * inside
    change = gap - (lower - upper)
    new_upper = upper - (1 - _LOWER_SHARE) * change
    new_lower = new_upper + gap

    # Above the mouth the skin between nose and lip is compressed, below it lip and chin move down.
    room_above = (upper - mouth.nose_base).clamp_min(4.0)
    up = (1 - ((new_upper - y) / room_above).clamp(0, 1)) ** 2
    # The jaw moves as a whole: as wide as the chin, fading towards the cheeks and below the chin.
    jaw_gap = opening * FULL_GAP * mouth.face_height - _middle(mouth.lower - mouth.upper, centre)
    jaw = jaw_gap * torch.exp(-((x - centre) / (1.5 * half)).square())
    to_chin = ((y - new_lower) / max(mouth.chin - mouth.lower_outer, 8.0)).clamp(0, 1)
    drop = torch.lerp(change, jaw, to_chin) * _LOWER_SHARE
    fade = (1 - ((y - mouth.chin) / (0.22 * mouth.face_height)).clamp(0, 1)).square()
    y_source = torch.where(y <= new_upper, y + (1 - _LOWER_SHARE) * change * up, y - drop * fade)

    face = sample(crop, x_source, y_source)
    cavity = _cavity(crop, x_source, y, new_upper, new_lower, upper, lower, interior, mouth, inside)
    # A pixel's share of the cavity, antialiased over one pixel at both lips.
    share = ((y - new_upper + 0.5).clamp(0, 1) * (new_lower - y + 0.5).clamp(0, 1))[None]
    share = share * (gap > 0.3)[None]
    return torch.lerp(face, cavity, share)


def _narrowed(x: Tensor, y: Tensor, mouth: Mouth, width: float) -> Tensor:
    """Return the source x of each pixel for a mouth of another width."""
    centre, half = (mouth.left + mouth.right) / 2, max((mouth.right - mouth.left) / 2, 1.0)
    middle = (mouth.upper_outer + mouth.lower_outer) / 2
    near = torch.exp(-(((x - centre) / (1.9 * half)) ** 4) - ((y - middle) / (1.1 * half)).square())
    return centre + (x - centre) * (1 + (1 / width - 1) * near)


def _cavity(
    crop: Tensor,
    x: Tensor,
    y: Tensor,
    new_upper: Tensor,
    new_lower: Tensor,
    upper: Tensor,
    lower: Tensor,
    interior: Interior,
    mouth: Mouth,
    inside: Tensor,
) -> Tensor:
    """Render the inside of the mouth: the portrait's own teeth if it shows them, and what the interior shows else."""
    below = y - new_upper
    full = FULL_GAP * mouth.face_height
    own = lower - upper
    has_own_teeth = bool(own.max() >= 0.25 * full)
    across = (x - mouth.left) / max(mouth.right - mouth.left, 1.0)
    gap = new_lower - new_upper
    colour = interior.colours(Opened(across, below, gap, inside, float(gap.max()), full), has_own_teeth)
    if has_own_teeth:
        shown = sample(crop, x, upper + below)
        colour = torch.lerp(colour, shown, (own - 1.0 - below + 0.5).clamp(0, 1)[None])
    if interior.is_lit:
        return colour
    # The upper lip casts a shadow.
    return colour * (0.55 + 0.45 * (below / (0.12 * full + 1)).clamp(0, 1))[None]


def _middle(line: Tensor, centre: float) -> float:
    return float(line[int(min(max(centre, 0), len(line) - 1))])


def _at(line: Tensor, x: Tensor) -> Tensor:
    """Sample a line (w,) at columns `x` (h, w), linearly."""
    left = x.floor().clamp(0, len(line) - 2)
    index = left.long()
    return torch.lerp(line[index], line[index + 1], (x - left).clamp(0, 1))
