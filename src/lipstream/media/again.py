"""Two more ways to make a video as long as longer speech: from the start again, and slower."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

CROSS_FADE_FRAMES = 5
"""Frames at the end of a pass that go over into those at the beginning of the next."""

Image = NDArray[np.uint8]


def from_the_start_again(
    images: Iterator[Image], replay: Callable[[int], Iterator[Image]], n_frames: int
) -> Iterator[tuple[int, bool, Image]]:
    """Yield (source index, whether it was there before, image): pass after pass, the end of each blended into the next.

    images: of the first pass. replay: gives the images once more, from an index on. Where the first pass is not shorter
    than `n_frames`, nothing is blended.
    """
    head: list[Image] = []
    tail: deque[Image] = deque()
    n = 0  # of the first pass, without what is held in `tail`
    for image in images:
        if len(head) < CROSS_FADE_FRAMES:
            head.append(image.copy())
        tail.append(image)
        if len(tail) > CROSS_FADE_FRAMES:
            yield n, False, tail.popleft()
            n += 1
        if n + len(tail) == n_frames:
            break
    length = n + len(tail)
    if length == 0:
        return
    n_faded = CROSS_FADE_FRAMES if length < n_frames and length >= 3 * CROSS_FADE_FRAMES else 0
    yield from _blended(tail, head[:n_faded], n, is_repeat=False)
    n_yielded = length
    while n_yielded < n_frames:
        tail.clear()
        index = n_faded
        for image in replay(n_faded):
            tail.append(image)
            if len(tail) > n_faded:
                yield index, True, tail.popleft()
                index += 1
        yield from _blended(tail, head[:n_faded], index, is_repeat=True)
        n_yielded += length - n_faded


def slower(images: Iterator[Image], n_source: int, n_frames: int) -> Iterator[tuple[int, bool, Image]]:
    """Yield (source index, whether it was there before, image): `n_source` images spread evenly over `n_frames`.

    More images than that are left out; where there are fewer, the last one stays.
    """
    last = -1
    held: Image | None = None
    for index in range(n_frames):
        wanted = index * n_source // n_frames
        is_repeat = True
        while last < wanted:
            image = next(images, None)
            if image is None:
                break
            held, last, is_repeat = image, last + 1, False
        if held is None:
            return
        yield last, is_repeat, held.copy()


def _blended(
    tail: deque[Image], head: list[Image], first: int, *, is_repeat: bool
) -> Iterator[tuple[int, bool, Image]]:
    """Yield the last images of a pass, going over into those of `head`, if there are any."""
    n_plain = len(tail) - len(head)
    for i, image in enumerate(tail):
        if i >= n_plain:
            share = (i - n_plain + 1) / (len(head) + 1)
            mixed = image + share * (head[i - n_plain].astype(np.float32) - image)
            image = np.rint(mixed).astype(np.uint8)
        yield first + i, is_repeat, image
