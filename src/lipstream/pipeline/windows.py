"""Windows: consecutive frames that the U-Net sees together, and the windows of one call."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol, TypeVar

from torch import Tensor

from lipstream.pipeline.records import Aligned, Window

T = TypeVar("T")

FRAMES_PER_FACE = 2
"""A window of n faces holds at most so many times n frames."""


class HasFaces(Protocol):
    """A window, or what is known of one. faces: the number of its frames that have a face."""

    @property
    def faces(self) -> int: ...


W = TypeVar("W", bound=HasFaces)


def gather(aligned: Iterable[Aligned], audio: Iterable[Tensor], num_frames: int) -> Iterator[Window]:
    """Yield windows of `num_frames` faces. Frames without one come along, up to as many again as a window holds.

    A frame with which something begins, a shot for instance, begins a window.
    """
    held: list[tuple[Aligned, Tensor]] = []
    for pair in zip(aligned, audio, strict=False):  # a video that is trimmed ends before the speech
        if held and pair[0].begins:
            yield _window(_emptied(held))
        held.append(pair)
        if is_full(len(held), sum(a.crop is not None for a, _ in held), num_frames):
            yield _window(_emptied(held))
    if held:
        yield _window(_emptied(held))


def is_full(n_frames: int, n_faces: int, num_frames: int) -> bool:
    """Return whether a window takes no more frames; num_frames: the faces that it is made for."""
    return n_faces == num_frames or n_frames == FRAMES_PER_FACE * num_frames


def _window(held: Sequence[tuple[Aligned, Tensor]]) -> Window:
    audio = tuple(features for aligned, features in held if aligned.crop is not None)
    return Window(tuple(aligned for aligned, _ in held), audio)


def batches(windows: Iterable[W], size: int) -> Iterator[list[W]]:
    """Yield up to `size` consecutive windows with the same number of faces: a shorter one is run at its own length."""
    held: list[W] = []
    for window in windows:
        if held and window.faces != held[0].faces:
            yield _emptied(held)
        held.append(window)
        del window  # waiting for the next one must not keep the frames of this one in memory
        if len(held) == size:
            yield _emptied(held)
    if held:
        yield held


def _emptied(held: list[T]) -> list[T]:
    items = list(held)
    held.clear()
    return items


def n_frames(windows: Sequence[Window]) -> int:
    """Return the number of frames in windows."""
    return sum(len(window.frames) for window in windows)
