"""What a run reports while it lasts, and what it gives back. Imports no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class StageTime:
    """Busy seconds of one stage, summed over its threads, and the frames it has done."""

    name: str
    seconds: float
    frames: int


@dataclass(frozen=True)
class Progress:
    """How far a run has come: frames written of `n_frames`, and what each stage has done."""

    frames: int
    n_frames: int
    stages: tuple[StageTime, ...]


@dataclass(frozen=True)
class SyncResult:
    """What one run did. real_time_factor: wall seconds per second of video; below 1 is faster than real time.

    output: a path, or the address that it was sent to. retries: how often work was begun again, since what did it had
    died. spans_without: first and last frame of each part without a face.
    """

    output: Path | str
    frames: int
    duration_s: float
    wall_s: float
    real_time_factor: float
    stages: tuple[StageTime, ...]
    frames_with_face: int
    frames_without: int
    settings: dict[str, Any]
    retries: int = 0
    spans_without: tuple[tuple[int, int], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the result as the command line's JSON object."""
        values = asdict(self)
        faces = {name: values.pop(name) for name in ("frames_with_face", "frames_without", "spans_without")}
        return {**values, "output": str(self.output), "faces": faces}


@dataclass(frozen=True)
class GeneratedCrop:
    """The generated face of one frame, not pasted back.

    index: position in the output. source_index: of the image that it was made from. image: (resolution, resolution, 3)
    uint8 RGB. affine_matrix: (2, 3) float32, takes the frame's pixels (x, y) to the aligned face of
    `lipstream.face.align.face_size(resolution)` pixels, which the image is a resized version of. Both are None for a
    frame without a face.
    """

    index: int
    source_index: int
    image: NDArray[np.uint8] | None
    affine_matrix: NDArray[np.float32] | None
