"""What an opening mouth uncovers: the inside of a filmed mouth, or a drawn one.

Drawn teeth are a strip of one colour, and a model trained on them draws a strip. Filmed ones are those of the very
person where he or she is dubbed, and another's, in the colour of the skin, in a portrait.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from lipstream.evaluate.appearance import LUMA

_ROWS, _COLUMNS = 24, 48  # of a filmed inside, straightened
_MIN_GAP_PX = 4.0  # of a mouth that is worth cutting out
_MIN_GAIN, _MAX_GAIN = 0.4, 2.5  # of a channel, to another skin
_SKIN = (0.80, 0.60, 0.50)  # in white light
_GREENEST, _YELLOWEST = 0.92, 0.86  # inside a mouth in white light: green of red at most, blue of green at least
_LUMA = torch.from_numpy(LUMA)
_BEHIND_TEETH = 0.22  # of the skin's luma: as light as what is seen below the upper teeth at most


@dataclass(frozen=True)
class Opened:
    """An open mouth to fill, in pixels: each (h, w) but for the two heights.

    across: 0 at the left corner, 1 at the right one. below: distance from the upper lip. gap: of the lips in a column.
    inside: height of the gap as a share of the middle's. middle_gap: of the lips at the middle. full_gap: of a fully
    open mouth.
    """

    across: Tensor
    below: Tensor
    gap: Tensor
    inside: Tensor
    middle_gap: float
    full_gap: float


class Interior(Protocol):
    """Colours the inside of a mouth. is_lit: its light is the one of a mouth, with the shadow of the upper lip."""

    is_lit: ClassVar[bool]

    def colours(self, mouth: Opened, has_own_teeth: bool) -> Tensor:
        """Return the colours (3, h, w) in [0, 1]. has_own_teeth: the upper ones need no drawing."""


@dataclass(frozen=True)
class Drawn:
    """A drawn inside: colours (3,) in [0, 1], length of the upper teeth as a share of the full gap."""

    is_lit: ClassVar[bool] = False

    dark: Tensor
    tongue: Tensor
    teeth: Tensor
    teeth_share: float

    @classmethod
    def random(cls, skin: Tensor, generator: torch.Generator) -> Drawn:
        """Draw plausible colours for a skin colour (3,) in [0, 1], whose brightness they follow."""
        light = float(skin.mean()) * 0.5 + 0.3

        def draw(low: float, high: float) -> float:
            return float(torch.rand((), generator=generator)) * (high - low) + low

        dark = torch.tensor([0.20, 0.09, 0.08]) * draw(0.6, 1.3)
        tongue = torch.tensor([0.62, 0.30, 0.29]) * light * draw(0.6, 1.1)
        teeth = torch.tensor([1.0, 0.95, 0.88]) * light * draw(1.0, 1.35)
        return cls(dark, tongue, teeth.clamp(0, 0.97), draw(0.1, 0.5))

    def colours(self, mouth: Opened, has_own_teeth: bool) -> Tensor:
        """Return a dark cavity with a tongue below and, unless there are own ones, a strip of teeth above."""
        depth = (mouth.below / mouth.gap.clamp_min(1.0)).clamp(0, 1)
        shown = (mouth.gap / mouth.full_gap).clamp(0, 1)
        tongue = ((depth - 0.62) / 0.38).clamp(0, 1)[None] * shown[None]
        colour = torch.lerp(self.dark[:, None, None], self.tongue[:, None, None], tongue)
        if not has_own_teeth:
            height = self.teeth_share * mouth.full_gap * mouth.inside
            drawn = self.teeth[:, None, None] * (0.45 + 0.55 * mouth.inside)[None]
            colour = torch.lerp(colour, drawn, (height - mouth.below + 0.5).clamp(0, 1)[None])
        return colour


@dataclass(frozen=True)
class Filmed:
    """The inside of a filmed mouth, straightened: rows from lip to lip, columns from corner to corner.

    picture: (3, 24, 48) in [0, 1]. gap_share: of its lips at the widest, of the full gap. skin: (3,), beside the nose.
    """

    is_lit: ClassVar[bool] = True

    picture: Tensor
    gap_share: float
    skin: Tensor

    @classmethod
    def cut(
        cls, image: Tensor, upper: Tensor, lower: Tensor, corners: tuple[float, float], full_gap: float, skin: Tensor
    ) -> Filmed | None:
        """Cut the inside out of a picture (3, h, w) in [0, 1]; None if the mouth is nearly shut.

        upper, lower: (w,), y of the inner lips. corners: x of the left and the right one.
        """
        gap = float((lower - upper).max())
        if gap < _MIN_GAP_PX:
            return None
        x = torch.linspace(corners[0], corners[1], _COLUMNS)
        index = x.round().long().clamp(0, len(upper) - 1)
        # Half a pixel from either lip, whose colour would otherwise get in.
        share = torch.linspace(0, 1, _ROWS)[:, None]
        y = upper[index] + 0.5 + share * (lower[index] - upper[index] - 1).clamp_min(0)
        picture = sample(image, x.expand(_ROWS, -1), y)
        return cls(picture, gap / full_gap, skin)

    def in_white_light(self) -> Filmed:
        """Return this inside as in white light, to be lent to others.

        A video's colours are coarse, and its light may be orange: teeth were yellow or green on other people's skin.
        """
        white = torch.tensor(_SKIN)
        skin = white * (self.skin @ _LUMA) / (white @ _LUMA)
        red, green, blue = self.picture * (skin / self.skin.clamp_min(0.02))[:, None, None]
        green = torch.minimum(green, _GREENEST * red)
        picture = torch.stack((red, green, torch.maximum(blue, _YELLOWEST * green)))
        return replace(self, picture=picture.clamp(0, 1), skin=skin)

    def on(self, skin: Tensor) -> Filmed:
        """Return this inside in the light of a face with another skin (3,).

        How light it is follows the skin by half only: dark skin does not mean dark teeth.
        """
        gain = (skin / self.skin.clamp_min(0.02)).clamp(_MIN_GAIN, _MAX_GAIN)
        gain = gain / gain.mean().sqrt()
        return replace(self, picture=(self.picture * gain[:, None, None]).clamp(0, 1), skin=skin)

    def colours(self, mouth: Opened, has_own_teeth: bool) -> Tensor:
        """Return the filmed inside, hung from the upper lip: a mouth less open shows its upper part only.

        Own teeth are drawn over it; below them it is dark, without a second row.
        """
        depth = (mouth.below / mouth.gap.clamp_min(1.0)).clamp(0, 1)
        shown = min(mouth.middle_gap / (self.gap_share * mouth.full_gap), 1.0)
        picture = self.picture
        if has_own_teeth:
            luma = (picture * _LUMA[:, None, None]).sum(0)
            picture = picture * (_BEHIND_TEETH * (self.skin @ _LUMA) / luma.clamp_min(0.02)).clamp_max(1)
        return sample(picture, mouth.across.clamp(0, 1) * (_COLUMNS - 1), depth * shown * (_ROWS - 1))


def sample(image: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Sample `image` (3, h, w) bilinearly at pixel positions x, y, both (m, n): (3, m, n)."""
    _, h, w = image.shape
    grid = torch.stack((x * 2 / (w - 1) - 1, y * 2 / (h - 1) - 1), -1)[None]
    return F.grid_sample(image[None], grid, mode="bilinear", padding_mode="border", align_corners=True)[0]
