"""Training clips: aligned crops with their audio, cached as one .npz file per clip."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from lipstream.audio_features import mel
from lipstream.errors import InputError
from lipstream.media.reader import read_frames

MEL_PER_FRAME = 4
# Mel frames kept before the first and after the last video frame: the receptive field of the features' convolutions.
MEL_BEFORE, MEL_AFTER = 28, 24
N_MELS = 80
_OPEN = 0.6  # an opening that shows what is inside the mouth
VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".mpg")
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png")

KINDS = ("footage", "dubbed", "still")

_ARRAYS = ("crops", "mel", "opening", "width", "extra")
_OTHER_VERSION = "written by another version of lipstream"
_MAKE_AGAIN = "delete the folder and run train data again"


@dataclass(frozen=True)
class Clip:
    """Consecutive frames with their audio.

    kind: "footage" is filmed, "dubbed" is footage with its mouth warped to other speech, "still" is an animated
    portrait. person: people are drawn evenly, not clips. late_ms: delay of the video's sound, corrected in `mel`.
    crops: (n, 3, res, res) uint8. mel: (N_MELS, 4 n + MEL_BEFORE + MEL_AFTER), normalised; frame i begins at
    column MEL_BEFORE + 4 i. opening: (n,) of the mouth, in units of portraits.FULL_GAP face heights. width: (n,) of the
    mouth, 1 at rest. extra: (m, 3, res, res) uint8, images of the same face that serve as references only: of footage
    (m = n) every frame with a random mouth, of dubbed clips the original frames.
    """

    name: str
    kind: str
    person: str
    late_ms: float
    crops: NDArray[np.uint8]
    mel: NDArray[np.float32]
    opening: NDArray[np.float32]
    width: NDArray[np.float32]
    extra: NDArray[np.uint8]

    def save(self, path: Path) -> None:
        """Write as .npz, atomically."""
        arrays: dict[str, Any] = {name: getattr(self, name) for name in _ARRAYS}
        temporary = path.with_suffix(".tmp.npz")
        facts: dict[str, Any] = {
            "kind": np.array(self.kind),
            "person": np.array(self.person),
            "late_ms": np.array(self.late_ms),
        }
        np.savez(temporary, **facts, **arrays)
        temporary.replace(path)

    @classmethod
    def load(cls, path: Path) -> Clip:
        """Read a clip written by `save`. Raises InputError if another version wrote it with other fields or margins."""
        with np.load(path) as file:
            if "person" not in file:
                raise InputError(_OTHER_VERSION, file=path, fix=_MAKE_AGAIN)
            clip = cls(
                name=path.stem,
                kind=str(file["kind"]),
                person=str(file["person"]),
                late_ms=float(file["late_ms"]),
                **{name: file[name] for name in _ARRAYS},
            )
        if clip.mel.shape[1] != MEL_PER_FRAME * len(clip.crops) + MEL_BEFORE + MEL_AFTER:
            raise InputError(_OTHER_VERSION, file=path, fix=_MAKE_AGAIN)
        return clip


def mel_columns(start: int, end: int) -> slice:
    """Return the columns of a clip's `mel` for frames `start` to `end` (exclusive), margins included."""
    return slice(MEL_PER_FRAME * start, MEL_PER_FRAME * end + MEL_BEFORE + MEL_AFTER)


def normalised_mel(samples: NDArray[np.float32]) -> Tensor:
    """Return the log-mel (N_MELS, frames) of a recording (mono, 16 kHz), as at inference."""
    blocks = list(mel.log_mel_blocks([samples], N_MELS))
    if not blocks:
        raise InputError("a recording is too short", fix="use recordings of at least a second")
    joined = torch.cat(blocks, 1)
    return mel.normalise(joined, float(joined.max()))


def mel_of_frames(whole: Tensor, first_frame: int, n_frames: int, shift: int = 0) -> Tensor:
    """Return the columns for `n_frames` frames from `first_frame`, `shift` mel frames later; edges are repeated."""
    start = MEL_PER_FRAME * first_frame - MEL_BEFORE + shift
    columns = torch.arange(start, start + MEL_PER_FRAME * n_frames + MEL_BEFORE + MEL_AFTER)
    return whole[:, columns.clamp(0, whole.shape[1] - 1)]


def upscaled(crop: Tensor) -> NDArray[np.uint8]:
    """Resize a crop (3, h, w), 0 to 255, to the face mesh's input: (256, 256, 3) uint8."""
    large = F.interpolate(crop[None].float(), size=(256, 256), mode="bilinear", align_corners=False)[0]
    return large.round().to(torch.uint8).permute(1, 2, 0).numpy()


def read_picture(path: Path) -> NDArray[np.uint8]:
    """Read an image file as uint8 RGB (h, w, 3)."""
    return next(iter(read_frames(path))).image


def clip_paths(folder: Path) -> list[Path]:
    """Return the clips of a cache, sorted by name."""
    return sorted(p for p in folder.glob("*.npz") if not p.name.endswith(".tmp.npz"))


def files_of(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Return the files of a folder with one of the suffixes, sorted by name."""
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in suffixes)


def read_shifts(path: Path) -> dict[str, float]:
    """Read audio offsets from a JSON object {"clip": milliseconds}. Raises InputError."""
    try:
        return {str(k): float(v) for k, v in json.loads(path.read_text()).items()}
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(
            f"not a JSON object of offsets ({error})", file=path, fix='write {"clip": milliseconds, ...}'
        ) from error


def all_crops(folder: Path, every: int = 3) -> Iterator[NDArray[np.uint8]]:
    """Yield crops of all clips, uint8 (res, res, 3), to train the autoencoder on.

    Every `every`-th, and all whose mouth is open, since teeth and tongue are what is hardest to draw.
    """
    for path in clip_paths(folder):
        clip = Clip.load(path)
        chosen = (np.arange(len(clip.crops)) % every == 0) | (clip.opening > _OPEN)
        yield from clip.crops[chosen].transpose(0, 2, 3, 1)


def seeded(seed: int, name: str) -> torch.Generator:
    """Return a generator that depends only on the seed and the clip's name."""
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def below(n: int, generator: torch.Generator) -> int:
    """Draw an integer from 0 to n - 1; 0 if n is less than 1."""
    return int(torch.randint(max(n, 1), (), generator=generator))
