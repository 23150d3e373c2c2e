"""The published SyncNet: how well lips and speech belong together (Chung and Zisserman 2016, "Out of time").

The network and its file's layout are those of joonson/syncnet_python, the distances those of its score as LatentSync's
evaluation computes it: windows of 5 frames beside 20 columns of MFCCs, shifts of up to 15 frames.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from lipstream.errors import InputError, ModelError
from lipstream.evaluate.mfcc import mfcc
from lipstream.models.checkpoint import fill, read_tensors

CROP_PX = 224
WINDOW_FRAMES = 5
MAX_SHIFT = 15
SAMPLES_PER_FRAME = 640

_COLUMNS_PER_FRAME, _WINDOW_COLUMNS = 4, 20
_BATCH = 20  # windows, as published: on the same machine the same digits
# Batch normalisation counts its batches; files of before torch 0.4.1 have no such number, and nothing reads it.
_COUNTER = "num_batches_tracked"


class SyncNet(nn.Module):
    """Two towers that map 0.2 s of lips and of speech to points that are close where the two belong together."""

    def __init__(self) -> None:
        super().__init__()
        self.netcnnaud = nn.Sequential(
            *_conv(nn.Conv2d, 1, 64, 3, padding=1),
            nn.Identity(),  # the published network pools 1 x 1 here; the file counts the layers
            *_conv(nn.Conv2d, 64, 192, 3, padding=1),
            nn.MaxPool2d(3, stride=(1, 2)),
            *_conv(nn.Conv2d, 192, 384, 3, padding=1),
            *_conv(nn.Conv2d, 384, 256, 3, padding=1),
            *_conv(nn.Conv2d, 256, 256, 3, padding=1),
            nn.MaxPool2d(3, stride=2),
            *_conv(nn.Conv2d, 256, 512, (5, 4)),
        )
        self.netfcaud = _head()
        self.netfclip = _head()
        self.netcnnlip = nn.Sequential(
            *_conv(nn.Conv3d, 3, 96, (WINDOW_FRAMES, 7, 7), stride=(1, 2, 2)),
            nn.MaxPool3d((1, 3, 3), stride=(1, 2, 2)),
            *_conv(nn.Conv3d, 96, 256, (1, 5, 5), stride=(1, 2, 2), padding=(0, 1, 1)),
            nn.MaxPool3d((1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1)),
            *_conv(nn.Conv3d, 256, 256, (1, 3, 3), padding=(0, 1, 1)),
            *_conv(nn.Conv3d, 256, 256, (1, 3, 3), padding=(0, 1, 1)),
            *_conv(nn.Conv3d, 256, 256, (1, 3, 3), padding=(0, 1, 1)),
            nn.MaxPool3d((1, 3, 3), stride=(1, 2, 2)),
            *_conv(nn.Conv3d, 256, 512, (1, 6, 6)),
        )

    def lips(self, windows: Tensor) -> Tensor:
        """Return the features (n, 1024) of windows of five frames (n, 3, 5, 224, 224), BGR, 0 to 255."""
        features: Tensor = self.netfclip(self.netcnnlip(windows).flatten(1))
        return features

    def speech(self, columns: Tensor) -> Tensor:
        """Return the features (n, 1024) of windows of MFCCs (n, 1, 13, 20)."""
        features: Tensor = self.netfcaud(self.netcnnaud(columns).flatten(1))
        return features


def _conv(kind: type[nn.Module], inputs: int, outputs: int, kernel: Any, **options: Any) -> list[nn.Module]:
    layer: Any = kind
    norm = nn.BatchNorm2d if kind is nn.Conv2d else nn.BatchNorm3d
    return [layer(inputs, outputs, kernel, **options), norm(outputs), nn.ReLU(inplace=True)]


def _head() -> nn.Sequential:
    return nn.Sequential(nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, 1024))


def load_syncnet(path: Path, device: torch.device | str = "cpu") -> SyncNet:
    """Load the published file, every tensor accounted for. Raises ModelError."""
    with torch.device("meta"):
        network = SyncNet()
    tensors = read_tensors(path, None)
    unknown = sorted(set(tensors) - set(network.state_dict()))
    if unknown:
        raise ModelError(
            f"{len(unknown)} tensors that SyncNet does not have, such as {unknown[0]}",
            file=path,
            fix="give the published syncnet_v2.model",
        )
    counters = [name for name in network.state_dict() if name.endswith(_COUNTER)]
    tensors = {**dict.fromkeys(counters, torch.zeros((), dtype=torch.int64)), **tensors}
    fill(network, tensors, path, torch.device(device), torch.float32)
    return network.eval().requires_grad_(False)


@dataclass(frozen=True)
class SyncScore:
    """How well a clip's lips follow its speech.

    sync_c: the confidence, the median of the mean distances less the smallest; higher is better. sync_d: the smallest
    mean distance; lower is better. offset: by how many frames the picture comes after the speech there.
    mean_distances: by shift, -15 to 15.
    """

    sync_c: float
    sync_d: float
    offset: int
    mean_distances: tuple[float, ...]


@torch.inference_mode()
def lip_features(network: SyncNet, crops: Iterable[NDArray[np.uint8]]) -> Tensor:
    """Return the features (n - 4, 1024) of a clip's crops (224, 224, 3) uint8 BGR, read once, some at a time."""
    device = next(network.parameters()).device
    batches = (torch.stack(windows).to(device, torch.float32) for windows in _batches(crops))
    return torch.cat([torch.zeros(0, 1024), *(network.lips(batch).cpu() for batch in batches)])


def _batches(crops: Iterable[NDArray[np.uint8]]) -> Iterator[list[Tensor]]:
    """Yield the windows (3, 5, 224, 224) of a clip, _BATCH at a time."""
    held: deque[Tensor] = deque(maxlen=WINDOW_FRAMES)
    batch: list[Tensor] = []
    for crop in crops:
        held.append(torch.from_numpy(crop).permute(2, 0, 1))
        if len(held) == WINDOW_FRAMES:
            batch.append(torch.stack(tuple(held), dim=1))
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


@torch.inference_mode()
def speech_features(network: SyncNet, samples: NDArray[Any], n_windows: int) -> Tensor:
    """Return the features (n_windows, 1024) of a recording: (n,) at 16 kHz in the range of 16-bit integers."""
    device = next(network.parameters()).device
    columns = torch.from_numpy(mfcc(samples)).float()
    windows = columns.unfold(1, _WINDOW_COLUMNS, _COLUMNS_PER_FRAME).transpose(0, 1)[:n_windows, None]
    return torch.cat([network.speech(windows[i : i + _BATCH].to(device)).cpu() for i in range(0, n_windows, _BATCH)])


def score(network: SyncNet, crops: Iterable[NDArray[np.uint8]], samples: NDArray[Any]) -> SyncScore:
    """Score a clip: crops (224, 224, 3) uint8 BGR at 25 a second, and samples (n,) at 16 kHz, as 16-bit integers.

    As published, the last possible window is left out, and beyond the ends a window is compared with zeros. Raises
    InputError where picture or speech is shorter than six frames.
    """
    lips = lip_features(network, crops)
    n_windows = min(len(lips) + WINDOW_FRAMES - 1, len(samples) // SAMPLES_PER_FRAME) - WINDOW_FRAMES
    if n_windows < 1:
        raise InputError("too short for SyncNet: fewer than six frames of picture or speech", fix="give a longer clip")
    return compared(lips[:n_windows], speech_features(network, samples, n_windows))


def compared(lips: Tensor, speech: Tensor) -> SyncScore:
    """Score the features of a clip's windows, both (n, 1024)."""
    padded = F.pad(speech, (0, 0, MAX_SHIFT, MAX_SHIFT))
    n = len(lips)
    by_shift = [F.pairwise_distance(lips, padded[shift : shift + n]).mean() for shift in range(2 * MAX_SHIFT + 1)]
    distances = torch.stack(by_shift)
    least, place = distances.min(0)
    return SyncScore(
        sync_c=float(distances.median() - least),
        sync_d=float(least),
        offset=MAX_SHIFT - int(place),
        mean_distances=tuple(distances.tolist()),
    )


def mean_score(scores: Sequence[SyncScore]) -> SyncScore:
    """Return the mean of the scores of a clip's tracks; the offset is cut to a whole number, as published."""
    distances = zip(*(one.mean_distances for one in scores), strict=True)
    return SyncScore(
        sync_c=fmean(one.sync_c for one in scores),
        sync_d=fmean(one.sync_d for one in scores),
        offset=int(fmean(one.offset for one in scores)),
        mean_distances=tuple(fmean(values) for values in distances),
    )
