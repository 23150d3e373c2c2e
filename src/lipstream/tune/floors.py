"""Floors: how good a measure has to stay, as `ssim=0.95` or, against the published behaviour's own, `sync_d=+0.2`.

Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lipstream.errors import SettingsError
from lipstream.evaluate.measures import MEASURES

Values = Mapping[str, float | None]

DEFAULT = "ssim=0.95"

# How much worse the first part of a clip may look than a floor asks before the rest is spared: half as far again
# from perfect.
_SLACK = 0.5


@dataclass(frozen=True)
class Floor:
    """A bound of a measure: a floor where higher is better, a ceiling where lower is.

    is_relative: `value` is by how much it may be worse than the published behaviour's own.
    """

    measure: str
    value: float
    is_relative: bool

    def __str__(self) -> str:
        return f"{self.measure}={'+' if self.is_relative else ''}{self.value:g}"

    def shortfall(self, values: Values, exact: Values) -> float:
        """Return by how much a measure falls short, 0 or less where it does not; infinite where it is undefined.

        exact: the values of the published behaviour.
        """
        found = values.get(self.measure)
        if found is None or math.isnan(found):
            return math.inf
        bound = self._bound(exact)
        if math.isinf(found):
            return -math.inf if found > 0 and self._is_higher() else math.inf
        return bound - found if self._is_higher() else found - bound

    def surely_missed(self, values: Values, exact: Values) -> bool:
        """Return whether a part of the clip falls so short that the whole of it will too."""
        bound, own = self._bound(exact), exact.get(self.measure)
        room = 0.0 if own is None or math.isinf(own) else abs(own - bound)
        return self.shortfall(values, exact) > max(_SLACK * room, 0.0)

    def _is_higher(self) -> bool:
        return MEASURES[self.measure].better == "higher"

    def _bound(self, exact: Values) -> float:
        if not self.is_relative:
            return self.value
        own = exact.get(self.measure)
        if own is None:
            raise SettingsError(
                f"floor {self}: {self.measure} cannot be measured here", fix=f"write {self.measure}=VALUE, or another"
            )
        return own - self.value if self._is_higher() else own + self.value


def parse_floors(texts: Sequence[str]) -> tuple[Floor, ...]:
    """Return the floors that options such as `ssim=0.95` mean. Raises SettingsError."""
    floors = tuple(_parsed(text) for text in texts)
    for place, floor in enumerate(floors):
        if floor.measure in [other.measure for other in floors[:place]]:
            raise SettingsError(f"floor {floor}: {floor.measure} has two floors", fix="give one")
    return floors


def _parsed(text: str) -> Floor:
    name, equals, number = text.partition("=")
    known = [one for one, measure in MEASURES.items() if measure.better != "neither"]
    if name not in known or not equals:
        raise SettingsError(f"floor {text!r}: not a measure and its bound", fix=f"use {', '.join(known)}")
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise SettingsError(f"floor {text!r}: {number!r} is not a number", fix="write such as ssim=0.95 or sync_d=+0.2")
    return Floor(name, value, number.startswith("+"))
