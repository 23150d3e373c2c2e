"""What becomes of the pauses in the speech, as `--silence` says."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from lipstream.audio_features.voice import VoiceActivity
from lipstream.pipeline.records import Clip
from lipstream.pipeline.track import FADE_FRAMES

Samples = NDArray[np.float32]


def with_pauses(clip: Clip, read_again: Callable[[], Iterable[Samples]]) -> Clip:
    """Return the clip with its pauses silenced, or with its frames kept there.

    read_again: gives the speech, mono, 16 kHz, once more; called where the settings need it.
    """
    silence = clip.settings.silence
    if silence == "model":
        return clip
    peak = max((float(np.abs(block).max(initial=0)) for block in read_again()), default=0.0)
    voice = VoiceActivity(read_again(), peak)
    if silence == "closed":
        return replace(clip, samples=voice.silenced(clip.samples))
    return replace(clip, kept=voice.at_frames(clip.n_frames, float(clip.frame_rate), FADE_FRAMES))
