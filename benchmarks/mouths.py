"""Mouths in videos, measured: crops cut alike from a clip and from what was made of it, and what differs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from lipstream.diffusion.mask import face_mask, mouth_region
from lipstream.evaluate.mouth import FaceMesh, mouth_opening, mouth_width
from lipstream.face.align import crop_face
from lipstream.face.registry import make_detector
from lipstream.face.tracking import FaceTrack
from lipstream.media.audio import read_mono
from lipstream.media.reader import read_frames
from lipstream.models.load import read_config
from lipstream_lab.train.losses import laplacian, psnr_db

RATE_HZ, FRAME_RATE_HZ = 16000, 25
SAMPLES = RATE_HZ // FRAME_RATE_HZ
SIZE = 256  # of the crops that landmarks are found in

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Faces:
    """Crops of a video in [-1, 1]: (n, 3, SIZE, SIZE), with their mesh points (n, 478, 2), not a number where none."""

    crops: Tensor
    points: Floats

    def openings(self) -> Floats:
        return np.array([np.nan if np.isnan(p).any() else mouth_opening(p) for p in self.points])

    def widths(self) -> Floats:
        return np.array([np.nan if np.isnan(p).any() else mouth_width(p) for p in self.points])


class Cutter:
    """Cuts every video of a clip with the affine matrices of the clip itself, so that pictures can be compared."""

    def __init__(self) -> None:
        self._detector = make_detector("mediapipe", "cpu")
        self._mesh = FaceMesh()

    def matrices(self, video: Path) -> list[Any]:
        track = FaceTrack(SIZE)
        found = []
        for frame in read_frames(video):
            face = self._detector.detect(frame.image)
            found.append(track.update(frame.index, False, None if face is None else face.landmarks))
        return found

    def faces(self, video: Path, matrices: list[Any]) -> Faces:
        crops, points = [], []
        for frame, matrix in zip(read_frames(video), matrices, strict=False):
            crop = torch.zeros(3, SIZE, SIZE, dtype=torch.uint8)
            found = None
            if matrix is not None:
                crop = crop_face(frame.image, matrix, SIZE)
                found = self._mesh.points(crop.permute(1, 2, 0).numpy())
            crops.append(crop)
            points.append(np.full((478, 2), np.nan) if found is None else found)
        return Faces(torch.stack(crops).float() / 127.5 - 1, np.stack(points))


def correlation(one: Floats, other: Floats) -> float:
    n = min(len(one), len(other))
    one, other = one[:n], other[:n]
    seen = ~np.isnan(one) & ~np.isnan(other)
    return round(float(np.corrcoef(one[seen], other[seen])[0, 1]), 3)


def loudness(speech: Path, n_frames: int) -> Floats:
    """Root of the energy of each frame's speech, smoothed over three frames."""
    samples = np.concatenate(list(read_mono(speech)))[: n_frames * SAMPLES]
    root = np.sqrt((samples[: len(samples) // SAMPLES * SAMPLES].reshape(-1, SAMPLES) ** 2).mean(1) + 1e-9)
    return np.convolve(np.pad(root, 1, mode="edge"), [0.25, 0.5, 0.25], "valid")


@dataclass(frozen=True)
class Region:
    """The repainted region at the model's own resolution: 1 = repainted, (1, 1, resolution, resolution)."""

    repainted: Tensor

    @classmethod
    def of(cls, model: str) -> Region:
        config, _ = read_config(model)
        return cls(1 - face_mask(config.mask_polygon_xy, config.mask_size, config.resolution)[None])

    def at_model_size(self, crops: Tensor) -> Tensor:
        side = self.repainted.shape[-1]
        return F.interpolate(crops, size=(side, side), mode="area")

    def sharpness(self, truth: Tensor, made: Tensor, *, mouth: bool = False) -> float:
        """Laplacian energy (mean of squares) of `made` over that of `truth`, in the region or at the mouth."""
        inner = (mouth_region(self.repainted.shape[-1])[None] if mouth else self.repainted)[..., 1:-1, 1:-1]
        energy = [(laplacian(self.at_model_size(x)).square() * inner).sum() for x in (made, truth)]
        return round(float(energy[0] / energy[1]), 3)

    def psnr_db(self, truth: Tensor, made: Tensor) -> float:
        return round(psnr_db(self.at_model_size(made), self.at_model_size(truth), self.repainted), 2)

    def flicker(self, truth: Tensor, made: Tensor) -> float:
        """Mean change from frame to frame of `made` over that of `truth`, in the region without the mouth."""
        change = [(self.at_model_size(x).diff(dim=0).abs() * self._skin()).sum() for x in (made, truth)]
        return round(float(change[0] / change[1]), 3)

    def tint(self, truth: Tensor, made: Tensor) -> float:
        """Colour shift of the region without the mouth: of the channel that is furthest off, in levels of 255."""
        difference = (self.at_model_size(made) - self.at_model_size(truth)) * self._skin()
        return round(float(difference.sum((0, 2, 3)).abs().max() / (len(made) * self._skin().sum()) * 127.5), 2)

    def _skin(self) -> Tensor:
        return self.repainted * (1 - mouth_region(self.repainted.shape[-1]))

    def seam(self, truth: Tensor, made: Tensor) -> float:
        """Colour step at the edge of the region: |mean of made - truth| over a rim 3 px wide, 0 to 255."""
        shrunk = 1 - F.max_pool2d(1 - self.repainted, 7, 1, 3)
        rim = self.repainted - shrunk
        difference = self.at_model_size(made) - self.at_model_size(truth)
        per_frame = (difference * rim).sum((2, 3)) / rim.sum()
        return round(float(per_frame.abs().mean() * 127.5), 2)
