"""How far pictures are from those they are compared with."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Images = Iterable[NDArray[np.uint8]]


def psnr_db(reference: Images, pictures: Images, untouched: Images | None = None) -> float | None:
    """Peak signal-to-noise ratio of uint8 pictures (h, w, 3) beside the reference's, dB; inf where they are equal.

    untouched: the frames before anything was painted; only pixels that differ from them in either picture count,
    since the rest is equal whatever the settings. None where no pixel counts.
    """
    squares, count = 0, 0
    for one, other, before in zip(reference, pictures, reference if untouched is None else untouched, strict=True):
        difference = one.astype(np.int64) - other
        counts = (one != before) | (other != before) if untouched is not None else np.ones(one.shape, np.bool_)
        painted = counts.any(axis=-1)
        squares += int(np.square(difference[painted]).sum())
        count += 3 * int(painted.sum())
    if count == 0:
        return None
    return math.inf if squares == 0 else 10 * math.log10(255**2 * count / squares)
