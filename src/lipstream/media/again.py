"""Two more ways to make a video as long as longer speech: from the start again, and slower."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

from lipstream.media.picture import Picture

CROSS_FADE_FRAMES = 5
"""Frames at the end of a pass that go over into those at the beginning of the next."""


def from_the_start_again(
    pictures: Iterator[Picture], replay: Callable[[int], Iterator[Picture]], n_frames: int
) -> Iterator[tuple[int, bool, Picture]]:
    """Yield (source index, whether it was there before, picture): pass after pass, ends blended into beginnings.

    pictures: of the first pass. replay: gives them once more, from an index on. Where the first pass is not shorter
    than `n_frames`, nothing is blended.
    """
    head: list[Picture] = []
    tail: deque[Picture] = deque()
    n = 0  # of the first pass, without what is held in `tail`
    for picture in pictures:
        if len(head) < CROSS_FADE_FRAMES:
            head.append(picture.copy())
        tail.append(picture)
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
        for picture in replay(n_faded):
            tail.append(picture)
            if len(tail) > n_faded:
                yield index, True, tail.popleft()
                index += 1
        yield from _blended(tail, head[:n_faded], index, is_repeat=True)
        n_yielded += length - n_faded


def slower(pictures: Iterator[Picture], n_source: int, n_frames: int) -> Iterator[tuple[int, bool, Picture]]:
    """Yield (source index, whether it was there before, picture): `n_source` of them spread evenly over `n_frames`.

    More pictures than that are left out; where there are fewer, the last one stays.
    """
    last = -1
    held: Picture | None = None
    for index in range(n_frames):
        wanted = index * n_source // n_frames
        is_repeat = True
        while last < wanted:
            picture = next(pictures, None)
            if picture is None:
                break
            held, last, is_repeat = picture, last + 1, False
        if held is None:
            return
        yield last, is_repeat, held.copy()


def _blended(
    tail: deque[Picture], head: list[Picture], first: int, *, is_repeat: bool
) -> Iterator[tuple[int, bool, Picture]]:
    """Yield the last pictures of a pass, going over into those of `head`, if there are any."""
    n_plain = len(tail) - len(head)
    for i, picture in enumerate(tail):
        if i >= n_plain:
            picture = picture.mixed(head[i - n_plain], (i - n_plain + 1) / (len(head) + 1))
        yield first + i, is_repeat, picture
