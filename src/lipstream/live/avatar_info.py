"""What a prepared clip says of itself, and how one is recognised. Imports no torch."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from fractions import Fraction
from pathlib import Path
from typing import Any

FORMAT, VERSION = "lipstream avatar", 1
_KEY = "lipstream"
_MOST_HEADER_BYTES = 1 << 20

DECIDED = ("face", "tracking", "detect_every", "frame_rate", "deinterlace", "resolution")
"""Settings that preparing decides."""


@dataclass(frozen=True)
class AvatarInfo:
    """What the file says of itself.

    video_sha256, video_suffix: of the video in it. loop: first frame, and the one after the last, of the part that
    is played to and fro. decided: see DECIDED; resolution and detect_every are numbers, tracking is people or off.
    """

    width: int
    height: int
    frame_rate: Fraction
    n_frames: int
    model: str
    weights_sha256: str
    resolution: int
    vae: str
    video_sha256: str
    video_suffix: str
    loop: tuple[int, int]
    decided: dict[str, Any]

    def to_metadata(self) -> dict[str, str]:
        """Return what `Avatar.open` reads."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        values |= {"format": FORMAT, "version": VERSION, "frame_rate": str(self.frame_rate)}
        return {_KEY: json.dumps(values)}

    @classmethod
    def of(cls, metadata: dict[str, str] | None) -> AvatarInfo:
        """Read it. Raises KeyError, ValueError, TypeError for what is not an avatar's."""
        values = json.loads((metadata or {})[_KEY])
        if values.pop("format") != FORMAT:
            raise ValueError("it is another file of lipstream's")
        if (version := values.pop("version")) != VERSION:
            raise ValueError(f"version {version}, not {VERSION}")
        first, stop = values["loop"]
        info = cls(**{**values, "frame_rate": Fraction(values["frame_rate"]), "loop": (int(first), int(stop))})
        if not (0 <= first < stop <= info.n_frames and info.frame_rate > 0 and min(info.width, info.height) > 0):
            raise ValueError("numbers out of range")
        if not info.video_suffix.removeprefix(".").isalnum():
            raise ValueError(f"a video called {info.video_suffix}")
        return info


def is_avatar(path: str | Path) -> bool:
    """Return whether a file begins as a prepared clip does, of any version."""
    try:
        if not Path(path).is_file():  # reading from a pipe would take from it
            return False
        with Path(path).open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            return size < _MOST_HEADER_BYTES and FORMAT.encode() in file.read(size)
    except OSError:
        return False
