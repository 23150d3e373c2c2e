"""The names of the models. Imports nothing, so that a wrong name is refused at once."""

from __future__ import annotations

BUNDLED = ("tiny",)
PUBLISHED = ("latentsync-1.5", "latentsync-1.6")
NAMES = BUNDLED + PUBLISHED
DETECTOR_MODELS = ("buffalo_s", "buffalo_l")
"""InsightFace's models, which `lipstream models download` fetches too."""
