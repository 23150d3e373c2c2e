"""Find out by how much a video's sound is late: slide it against the opening of the mouth.

What is compared is the opening that the bundled model's audio encoder predicts from the sound, which is sharper than
loudness: mouths open before the voice sets in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lipstream.models.load import Source, locate, read_config
from lipstream_lab.train import audio_encoder
from lipstream_lab.train.data import mel_of_frames

STEP_MS = 10  # of a mel column
LIMIT_MS = 200
# A long shift must correlate better than a short one by this much a second: short clips fit anywhere by chance.
_PENALTY_PER_S = 0.5

Predict = Callable[[Tensor, int], NDArray[np.float32]]
"""Maps the mel of a window (N_MELS, columns with margins) and its number of frames to shapes (frames, 2)."""


@dataclass(frozen=True)
class Offset:
    """The delay of the sound against the picture in ms, and the correlation with it and without."""

    late_ms: int
    r: float
    r_unmoved: float


def find_offset(mel: Tensor, opening: NDArray[np.float32], predict: Predict) -> Offset:
    """Search for the delay of the sound, to LIMIT_MS either way.

    mel: normalised, of the whole recording. opening: (n,) of the mouth in the first n frames.
    """
    lags, n = range(-LIMIT_MS, LIMIT_MS + 1, STEP_MS), len(opening)
    curves = {lag: predict(mel_of_frames(mel, 0, n, lag // STEP_MS), n)[:, 0] for lag in lags}
    found = {lag: audio_encoder.correlation(curve, opening) for lag, curve in curves.items()}
    best = max(lags, key=lambda lag: found[lag] - _PENALTY_PER_S * abs(lag) / 1000)
    return Offset(best, found[best], found[0])


def predictor(model: str | Path) -> Predict:
    """Return the shapes that a model's audio encoder predicts; one with the sizes that `train` gives it."""
    config, folder = read_config(model)
    source = Source(config, locate(config, folder), torch.device("cpu"), "none")
    encoder = source.audio_encoder(torch.float32)

    def predict(mel: Tensor, n_frames: int) -> NDArray[np.float32]:
        with torch.inference_mode():
            features = audio_encoder.feature_windows(encoder.convolve(mel[None]), n_frames)
            return audio_encoder.predicted_shape(features)[0].numpy()

    return predict
