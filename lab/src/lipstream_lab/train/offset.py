"""Find out by how much a video's sound is late: slide it against the opening of the mouth.

What is compared is the opening that the bundled model's audio encoder predicts from the sound, which is sharper than
loudness: mouths open before the voice sets in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lipstream.models.load import Source, locate, read_config
from lipstream.models.names import BUNDLED
from lipstream_lab.train import audio_encoder
from lipstream_lab.train.data import mel_of_frames

STEP_MS = 10  # of a mel column
LIMIT_MS = 200
# A long shift must correlate better than a short one by this much a second: short clips fit anywhere by chance.
_PENALTY_PER_S = 0.5

Predict = Callable[[Tensor, int], NDArray[np.float32]]
"""Maps the mel of a window of clips (N_MELS, columns with margins) and its frames to openings (frames,)."""


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
    lags = range(-LIMIT_MS, LIMIT_MS + 1, STEP_MS)
    found = {
        lag: _correlation(predict(mel_of_frames(mel, 0, len(opening), lag // STEP_MS), len(opening)), opening)
        for lag in lags
    }
    best = max(lags, key=lambda lag: found[lag] - _PENALTY_PER_S * abs(lag) / 1000)
    return Offset(best, found[best], found[0])


def bundled_predictor() -> Predict:
    """Return the openings that the bundled model's audio encoder predicts."""
    config, folder = read_config(BUNDLED[0])
    source = Source(config, locate(config, folder), torch.device("cpu"), "none")
    encoder = source.audio_encoder(torch.float32)

    def predict(mel: Tensor, n_frames: int) -> NDArray[np.float32]:
        with torch.inference_mode():
            features = audio_encoder.feature_windows(encoder.convolve(mel[None]), n_frames)
            return audio_encoder.predicted_shape(features)[0, :, 0].numpy()

    return predict


def _correlation(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Return Pearson's r; 0 where either is constant."""
    if one.std() < 1e-6 or other.std() < 1e-6:
        return 0.0
    return float(np.corrcoef(one, other)[0, 1])
