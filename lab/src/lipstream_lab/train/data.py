"""Training clips: aligned crops with the sound that belongs to them, cached as one .npz a clip."""

from __future__ import annotations

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

FRAME_RATE_HZ = 25
MEL_PER_FRAME = 4
# Mel frames kept before a clip's first frame and after its last: what its rows of features and their convolutions see.
MEL_BEFORE, MEL_AFTER = 28, 24
N_MELS = 80
VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi")
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png")

KINDS = ("footage", "dubbed", "still")

_ARRAYS = ("crops", "mel", "opening", "width", "extra")


@dataclass(frozen=True)
class Clip:
    """Frames in order with their sound.

    kind: "footage" is as it was filmed, "dubbed" footage whose mouth was made to say something else, "still" a portrait
    that was made to talk. crops: (n, 3, res, res) uint8. mel: (N_MELS, 4 n + MEL_BEFORE + MEL_AFTER), normalised;
    column MEL_BEFORE + 4 i is where frame i begins. opening: (n,), 1 = stills.FULL_GAP of the face's height; width:
    (n,) of the mouth, 1 = at rest. extra: (m, 3, res, res) uint8, more pictures of the same face that can only be
    references: of footage (m = n) every frame with its mouth redrawn at random, dubbed, every frame as it was.
    """

    name: str
    kind: str
    crops: NDArray[np.uint8]
    mel: NDArray[np.float32]
    opening: NDArray[np.float32]
    width: NDArray[np.float32]
    extra: NDArray[np.uint8]

    def save(self, path: Path) -> None:
        """Write as .npz, whole or not at all."""
        arrays: dict[str, Any] = {name: getattr(self, name) for name in _ARRAYS}
        temporary = path.with_suffix(".tmp.npz")
        np.savez(temporary, kind=np.array(self.kind), **arrays)
        temporary.replace(path)

    @classmethod
    def load(cls, path: Path) -> Clip:
        """Read what `save` wrote. Raises InputError for what a lipstream of other margins wrote."""
        with np.load(path) as file:
            clip = cls(name=path.stem, kind=str(file["kind"]), **{name: file[name] for name in _ARRAYS})
        if clip.mel.shape[1] != MEL_PER_FRAME * len(clip.crops) + MEL_BEFORE + MEL_AFTER:
            raise InputError(
                f"{path}: made by another version of lipstream; remove the folder and make the clips again"
            )
        return clip


def mel_columns(start: int, end: int) -> slice:
    """The columns of a clip's `mel` that frames `start` to `end` (exclusive) need, margins included."""
    return slice(MEL_PER_FRAME * start, MEL_PER_FRAME * end + MEL_BEFORE + MEL_AFTER)


def normalised_mel(samples: NDArray[np.float32]) -> Tensor:
    """The product's log-mel of a whole recording (mono, 16 kHz): (N_MELS, frames)."""
    blocks = list(mel.log_mel_blocks([samples], N_MELS))
    if not blocks:
        raise InputError("a training recording is too short")
    joined = torch.cat(blocks, 1)
    return mel.normalise(joined, float(joined.max()))


def mel_of_frames(whole: Tensor, first_frame: int, n_frames: int, shift: int = 0) -> Tensor:
    """The columns that `n_frames` frames from `first_frame` need, edges repeated; `shift` mel frames later."""
    start = MEL_PER_FRAME * first_frame - MEL_BEFORE + shift
    columns = torch.arange(start, start + MEL_PER_FRAME * n_frames + MEL_BEFORE + MEL_AFTER)
    return whole[:, columns.clamp(0, whole.shape[1] - 1)]


def upscaled(crop: Tensor) -> NDArray[np.uint8]:
    """A crop (3, h, w) of 0 to 255 as an image (256, 256, 3), large enough for the face mesh."""
    large = F.interpolate(crop[None].float(), size=(256, 256), mode="bilinear", align_corners=False)[0]
    return large.round().to(torch.uint8).permute(1, 2, 0).numpy()


def read_picture(path: Path) -> NDArray[np.uint8]:
    """A picture file as uint8 RGB (h, w, 3)."""
    return next(iter(read_frames(path))).image


def clip_paths(folder: Path) -> list[Path]:
    """The clips of a cache, in the order of their names."""
    return sorted(p for p in folder.glob("*.npz") if not p.name.endswith(".tmp.npz"))


def files_of(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Files of a folder with one of the suffixes, in the order of their names."""
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in suffixes)


def read_shifts(path: Path) -> dict[str, float]:
    """Sound shifts from a JSON object {"clip": milliseconds}."""
    try:
        return {str(k): float(v) for k, v in json.loads(path.read_text()).items()}
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: not a JSON object of milliseconds by clip ({error})") from error


def all_crops(folder: Path, every: int = 3) -> Iterator[NDArray[np.uint8]]:
    """Every `every`-th crop of all clips, uint8 (res, res, 3): what the autoencoder is trained on."""
    for path in clip_paths(folder):
        yield from Clip.load(path).crops[::every].transpose(0, 2, 3, 1)


def below(n: int, generator: torch.Generator) -> int:
    """A whole number from 0 to n - 1; 0 where n is less than 1."""
    return int(torch.randint(max(n, 1), (), generator=generator))
