"""Where in a recording somebody speaks, by loudness, and what becomes of the rest."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from lipstream.audio_features.mel import SAMPLE_RATE_HZ

Samples = NDArray[np.float32]

_PART_S = 0.02
# Root mean square of a part, as a share of the recording's largest sample, from which on it counts as speech.
_FLOOR = 0.01
_SILENT = 1e-4  # -80 dB of full scale, whatever the largest sample
_BEFORE_S, _AFTER_S = 0.12, 0.24
_SHORTEST_PAUSE_S = 0.4


class VoiceActivity:
    """In which parts of a recording, of 20 ms, somebody speaks: a byte each."""

    def __init__(self, samples: Iterable[Samples], peak: float) -> None:
        """samples: mono, 16 kHz, in blocks. peak: the largest magnitude of any of them."""
        size = round(_PART_S * SAMPLE_RATE_HZ)
        parts = [np.sqrt(np.square(part).mean(1)) for part in _parts(samples, size)]
        loudness = np.concatenate(parts) if parts else np.zeros(0, np.float32)
        self._speaks = _without_short_pauses(_widened(loudness >= max(_FLOOR * peak, _SILENT)))

    def at_frames(self, n_frames: int, frame_rate_hz: float, fade_frames: int) -> NDArray[np.float32]:
        """Return a weight for each frame: 1 where somebody speaks, 0 in pauses, fading over so many frames there."""
        parts = (np.arange(n_frames) / frame_rate_hz / _PART_S).astype(np.intp)
        speaks = self._at(parts).astype(np.float32)
        if fade_frames == 0:
            return speaks
        # Speech itself is never faded: the fades lie in the pauses.
        kernel = 1 - np.abs(np.arange(-fade_frames, fade_frames + 1)) / (fade_frames + 1)
        padded = np.pad(speaks, fade_frames, mode="edge")
        windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * fade_frames + 1)
        return np.asarray((windows * kernel).max(1), np.float32)

    def silenced(self, samples: Iterable[Samples]) -> Iterator[Samples]:
        """Yield the recording with nothing in its pauses."""
        size = round(_PART_S * SAMPLE_RATE_HZ)
        start = 0
        for block in samples:
            parts = np.arange(start, start + len(block)) // size
            start += len(block)
            yield np.where(self._at(parts), block, np.float32(0))

    def _at(self, parts: NDArray[np.intp]) -> NDArray[np.bool_]:
        known = len(self._speaks)
        if known == 0:
            return np.zeros(len(parts), bool)
        return np.where(parts < known, self._speaks[parts.clip(0, known - 1)], False)


def _parts(samples: Iterable[Samples], size: int) -> Iterator[NDArray[np.float32]]:
    """Yield the samples as (n, size), the last part filled up with zeros."""
    held = np.zeros(0, np.float32)
    for block in samples:
        held = np.concatenate([held, block])
        n = len(held) // size
        if n:
            yield held[: n * size].reshape(n, size)
            held = held[n * size :]
    if len(held):
        yield np.pad(held, (0, size - len(held)))[None]


def _widened(speaks: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Count what comes shortly before and after speech as speech: lips open before a sound and close after it."""
    before, after = round(_BEFORE_S / _PART_S), round(_AFTER_S / _PART_S)
    wide: NDArray[np.bool_] = speaks.copy()
    for place in np.flatnonzero(speaks):
        wide[max(0, place - before) : place + after + 1] = True
    return wide


def _without_short_pauses(speaks: NDArray[np.bool_]) -> NDArray[np.bool_]:
    shortest = round(_SHORTEST_PAUSE_S / _PART_S)
    edges = np.flatnonzero(np.diff(speaks.astype(np.int8)))
    filled: NDArray[np.bool_] = speaks.copy()
    for end, begin in itertools.pairwise(edges.tolist()):
        if not speaks[end + 1] and begin - end < shortest:
            filled[end + 1 : begin + 1] = True
    return filled
