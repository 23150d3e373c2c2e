"""Draw clips evenly: by kind, and by person."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Generic, Protocol, TypeVar

import torch

from lipstream_lab.train.data import KINDS


class Clip(Protocol):
    """What is drawn. person: whose clips share one weight."""

    @property
    def kind(self) -> str: ...
    @property
    def person(self) -> str: ...
    @property
    def n_frames(self) -> int: ...


C = TypeVar("C", bound=Clip)


class Group(Generic[C]):
    """Clips of one kind, drawn so that a person with many does not crowd out the others.

    A person is drawn in proportion to the square root of his or her frames, and of the person's clips one in
    proportion to its frames. weights: what the clips' own weights are multiplied by.
    """

    def __init__(self, clips: list[C], weights: Sequence[float] | None = None) -> None:
        frames = Counter[str]()
        for clip in clips:
            frames[clip.person] += clip.n_frames
        self.clips = clips
        self._lengths = torch.tensor([clip.n_frames for clip in clips])
        self._weights = self._lengths / torch.tensor([frames[clip.person] for clip in clips]).sqrt()
        if weights is not None:
            self._weights = self._weights * torch.tensor(weights)

    def draw(self, generator: torch.Generator, min_frames: int = 1) -> C:
        """Draw a clip of at least `min_frames` frames; there must be one."""
        weights = self._weights * (self._lengths >= min_frames)
        return self.clips[int(torch.multinomial(weights, 1, generator=generator))]


def by_kind(clips: Iterable[C]) -> dict[str, Group[C]]:
    """Group the clips by kind, in the order of data.KINDS, without empty groups."""
    groups: dict[str, list[C]] = {kind: [] for kind in KINDS}
    for clip in clips:
        groups[clip.kind].append(clip)
    return {kind: Group(group) for kind, group in groups.items() if group}
