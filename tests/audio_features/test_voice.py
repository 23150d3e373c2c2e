"""Pauses in the speech, by loudness."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lipstream.audio_features.voice import VoiceActivity

RATE_HZ = 16000


def speech(*pieces: tuple[float, float]) -> NDArray[np.float32]:
    """Noise of given lengths in s and loudnesses."""
    rng = np.random.default_rng(0)
    return np.concatenate([rng.normal(0, level, round(length_s * RATE_HZ)) for length_s, level in pieces]).astype(
        np.float32
    )


SPOKEN = speech((1, 0.1), (1, 0.0005), (1, 0.1), (0.2, 0.0005), (1, 0.1), (1, 0))


def test_pauses_are_silenced_and_speech_stays() -> None:
    voice = VoiceActivity([SPOKEN], 0.4)
    blocks = np.split(SPOKEN, [100, 5000, 33333])
    silenced = np.concatenate(list(voice.silenced(blocks)))
    assert len(silenced) == len(SPOKEN)
    at = lambda begin, end: slice(round(begin * RATE_HZ), round(end * RATE_HZ))  # noqa: E731
    for begin, end in ((0, 1.2), (1.9, 4.2)):
        assert np.array_equal(silenced[at(begin, end)], SPOKEN[at(begin, end)])
    assert not silenced[at(1.3, 1.85)].any() and SPOKEN[at(1.3, 1.85)].any()


def test_frames_fade_inside_the_pauses_only() -> None:
    weights = VoiceActivity(np.split(SPOKEN, [7, 12345]), 0.4).at_frames(130, 25, 3)
    assert (weights[:31] == 1).all() and (weights[48:105] == 1).all()
    assert (weights[35:43] == 0).all() and (weights[115:] == 0).all()
    assert np.allclose(weights[31:35], [0.75, 0.5, 0.25, 0], atol=0.26)
    assert (np.abs(np.diff(weights)) <= 0.2501).all()
    assert VoiceActivity([], 0.0).at_frames(3, 25, 3).tolist() == [0, 0, 0]


def test_silence_is_one_pause() -> None:
    silent = np.zeros(RATE_HZ, np.float32)
    for peak in (0.0, 1.0):
        assert not VoiceActivity([silent], peak).at_frames(25, 25, 0).any()
