"""Shot boundaries: where one picture and the next are not of the same scene.

As content detectors do (PySceneDetect's, for one): coarse pictures are compared, and a difference is a cut that is
large by itself and beside those just before and after it, so that a moving camera makes none. Dissolves are not found.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

_SIDE = 24
_SAMPLES = 4
# The mean difference of coarse pictures, in levels of 255, and how often that of so many frames on both sides.
_CUT, _TIMES_AS_MUCH = 12.0, 3.0
_BESIDE = 2

Coarse = NDArray[np.float32]
T = TypeVar("T")


def coarse_picture(image: NDArray[np.uint8]) -> Coarse:
    """Return a picture (h, w, 3) as about 24 x 24 means of some of its pixels, float32."""
    step_y, step_x = (max(1, side // (_SIDE * _SAMPLES)) for side in image.shape[:2])
    sampled = image[step_y // 2 :: step_y, step_x // 2 :: step_x].astype(np.float32)
    rows, columns = (max(1, side // _SAMPLES) for side in sampled.shape[:2])
    sampled = sampled[: rows * _SAMPLES, : columns * _SAMPLES]
    if sampled.shape[:2] != (rows * _SAMPLES, columns * _SAMPLES):  # a picture of a few pixels
        return sampled
    blocks = sampled.reshape(rows, _SAMPLES, columns, _SAMPLES, 3)
    return np.asarray(blocks.mean((1, 3)), np.float32)


def with_cuts(items: Iterable[tuple[T, Coarse]]) -> Iterator[tuple[T, bool]]:
    """Yield items, and whether a new shot begins with each; the first begins none.

    items: with the coarse picture of each. They come two frames late, since those after a cut are looked at too.
    """
    yield from cuts_of(_with_differences(items))


def _with_differences(items: Iterable[tuple[T, Coarse]]) -> Iterator[tuple[T, float]]:
    last: Coarse | None = None
    for item, picture in items:
        yield item, 0.0 if last is None else difference(last, picture)
        last = picture


def cuts_of(items: Iterable[tuple[T, float]]) -> Iterator[tuple[T, bool]]:
    """Yield what `with_cuts` does. items: with the difference of each from the one before, 0 for the first."""
    waiting: deque[tuple[T, float]] = deque()
    earlier: deque[float] = deque(maxlen=_BESIDE)
    for pair in items:
        waiting.append(pair)
        del pair  # the one before is not held
        if len(waiting) > _BESIDE:
            yield _next(waiting, earlier)
    while waiting:
        yield _next(waiting, earlier)


def _next(waiting: deque[tuple[T, float]], earlier: deque[float]) -> tuple[T, bool]:
    item, change = waiting.popleft()
    beside = [*earlier, *(later for _, later in waiting)]
    earlier.append(change)
    return item, change > max(_CUT, _TIMES_AS_MUCH * sum(beside) / max(1, len(beside)))


def difference(one: Coarse, other: Coarse) -> float:
    """Return the mean difference of two coarse pictures, in levels of 255."""
    return float(np.abs(one - other).mean()) if one.shape == other.shape else float("inf")
