"""The names that `--model` takes. Imports no torch, so that a wrong name is refused at once."""

from __future__ import annotations

import difflib
from pathlib import Path

from lipstream.errors import ModelError

BUNDLED = ("tiny",)
PUBLISHED = ("latentsync-1.5", "latentsync-1.6")
NAMES = BUNDLED + PUBLISHED
DETECTOR_MODELS = ("buffalo_s", "buffalo_l")
"""InsightFace's models, which `lipstream models download` fetches too."""
NETWORKS = ("syncnet", "taesd")
"""What `lipstream evaluate` scores sync with, and the small autoencoder of --vae: `lipstream models download` too."""


def check_model(model: str | Path) -> None:
    """Raise ModelError unless `model` is the name of a model or a folder that exists."""
    if str(model) in NAMES or Path(model).is_dir():
        return
    near = difflib.get_close_matches(str(model), NAMES, n=1)
    raise ModelError(
        f"neither a folder nor one of the models {', '.join(NAMES)}",
        file=model,
        fix=f"did you mean {near[0]}?" if near else "name one of these, or a folder that holds a model",
    )
