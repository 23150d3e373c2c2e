"""What the mouth's opening over time tells: does it follow the speech, is it shut in silence, does the old mouth show.

Openings are distances of the inner lips over face heights, one per frame at 25 a second, NaN where no mouth was found.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Openings = NDArray[np.float64]

SAMPLES_PER_FRAME = 640

OPEN = 0.02
"""Face heights from which a mouth counts as open: shut ones of filmed speakers measure below 0.01."""

# Frames quieter than this below the loudest, or than that below full scale, are silence.
_QUIET_BELOW_PEAK_DB, _QUIET_DB = 30.0, -50.0
# Lips close after the sound ends and part before it begins: pauses shorter than 0.32 s and their ends are left out.
_SHORTEST_FRAMES, _TRANSITION_FRAMES = 8, 3


def levels_db(samples: NDArray[np.float32], n_frames: int) -> NDArray[np.float64]:
    """Return the root mean square of the speech during each frame, dB of full scale: (up to n_frames,).

    samples: (n,) mono at 16 kHz, full scale 1.
    """
    n = min(n_frames, len(samples) // SAMPLES_PER_FRAME)
    frames = samples[: n * SAMPLES_PER_FRAME].reshape(n, SAMPLES_PER_FRAME).astype(np.float64)
    return np.asarray(10 * np.log10(np.square(frames).mean(axis=1) + 1e-12))


def silent_frames(levels: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which frames lie inside a pause, (n,): quiet for 0.32 s at least, less 0.12 s next to speech."""
    quiet = levels < max(_QUIET_DB, levels.max(initial=-np.inf) - _QUIET_BELOW_PEAK_DB)
    silent = np.zeros(len(quiet), np.bool_)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], quiet, [False]]).astype(np.int8)))
    for begin, end in edges.reshape(-1, 2).tolist():
        if end - begin >= _SHORTEST_FRAMES:
            first = begin if begin == 0 else begin + _TRANSITION_FRAMES
            last = end if end == len(quiet) else end - _TRANSITION_FRAMES
            silent[first:last] = True
    return silent


@dataclass(frozen=True)
class Silence:
    """The mouth in the pauses: their frames with a mouth, its mean opening, and the share of them it is open in."""

    frames: int
    opening: float | None
    open_share: float | None


def in_silence(openings: Openings, silent: NDArray[np.bool_]) -> Silence:
    """Measure the mouth in silence."""
    n = min(len(openings), len(silent))
    found = openings[:n][silent[:n] & ~np.isnan(openings[:n])]
    if len(found) == 0:
        return Silence(0, None, None)
    return Silence(len(found), float(found.mean()), float((found > OPEN).mean()))


def correlation(one: NDArray[np.float64], other: NDArray[np.float64]) -> float | None:
    """Return Pearson's correlation over the frames that both have; None where one is constant or two are too few."""
    n = min(len(one), len(other))
    both = ~(np.isnan(one[:n]) | np.isnan(other[:n]))
    x, y = one[:n][both], other[:n][both]
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return float(np.corrcoef(x, y)[0, 1])


def leakage(openings: Openings, source: Openings, levels: NDArray[np.float64]) -> float | None:
    """Return how far a mouth follows that of the source: their correlation with the new speech's loudness held fixed.

    0 where nothing of the old speech shows, 1 where the mouth is the old one; below 0 by chance only. None where one of
    the two mouths does not move.
    """
    n = min(len(openings), len(source), len(levels)) if len(levels) else min(len(openings), len(source))
    follows = correlation(openings[:n], source[:n])
    ours, theirs = (correlation(one[:n], levels[:n]) for one in (openings, source))
    if follows is None or ours is None or theirs is None:
        return follows
    rest = (1 - ours**2) * (1 - theirs**2)
    return None if rest <= 0 else (follows - ours * theirs) / float(np.sqrt(rest))
