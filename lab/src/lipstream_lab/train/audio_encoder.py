"""Train the audio encoder to predict the shape of the mouth: its opening and its width. It is then frozen.

Trained together with the U-Net, whose batches hold few windows, a pretrained encoder forgets: its loss was four times
as high after 700 steps, although it was part of the total loss.

Audio does not determine the opening exactly, and a U-Net conditioned on uncertain predictions learns their mean:
blurred mouths that hardly open. During U-Net training the audio features are therefore moved to the true shape
(`with_shape`), on the scale of the encoder's predictions (`prediction_scale`). The U-Net learns to follow the features,
and at inference it gets the predictions.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from lipstream.audio_features.features import ROWS_AFTER, ROWS_BEFORE, ROWS_PER_FRAME
from lipstream.errors import InputError
from lipstream.models.whisper import AudioEncoder
from lipstream_lab.train import augment, data
from lipstream_lab.train.groups import by_kind
from lipstream_lab.train.loop import LoopSettings, Report, Run, step_generator

logger = logging.getLogger(__name__)

_WIDTH_GAIN = 4.0  # widths vary little around 1
_FRAMES = 12
# One window in 16 is silence with a closed mouth, which clips of speech hardly contain. Normalised mel: none to faint.
_SILENCE_INTERVAL = 16
_SILENCE_MEL = (-1.5, -0.5)
_DROPOUT = 0.3
# Scale of the channels relative to the shape: the U-Net starts to use the audio hundreds of steps earlier.
OUTPUT_GAIN = 5.0
_SCALE_BATCHES = 60
# Half of the windows are filmed: a real mouth teaches what mouths do, a synthetic one that every voice moves a mouth.
_KINDS = ("footage", "dubbed", "footage", "still")


class SpokenClip(Protocol):
    """What the encoder is trained on: a clip's sound and the mouth's shapes, as in `data.Clip`."""

    @property
    def kind(self) -> str: ...
    @property
    def person(self) -> str: ...
    @property
    def n_frames(self) -> int: ...
    @property
    def mel(self) -> Tensor: ...
    @property
    def opening(self) -> Tensor: ...
    @property
    def width(self) -> Tensor: ...


@dataclass(frozen=True)
class Sound:
    """A clip without its pictures."""

    kind: str
    person: str
    mel: Tensor
    opening: Tensor
    width: Tensor

    @property
    def n_frames(self) -> int:
        """Number of frames."""
        return len(self.opening)


def load_sounds(folder: Path) -> list[Sound]:
    """Load all clips of `folder` without reading their pictures."""
    sounds = []
    for path in data.clip_paths(folder):
        with np.load(path) as file:
            mel, opening, width = (torch.from_numpy(file[name]) for name in ("mel", "opening", "width"))
            sounds.append(Sound(str(file["kind"]), str(file["person"]), mel, opening, width))
    return sounds


def feature_windows(rows: Tensor, num_frames: int) -> Tensor:
    """Return the ten rows that each frame is conditioned on: (windows, num_frames, 10, channels).

    rows: (windows, rows, channels), of mel frames that begin data.MEL_BEFORE before the first video frame.
    """
    first = data.MEL_BEFORE // ROWS_PER_FRAME - ROWS_BEFORE
    features = rows[:, first:].unfold(1, ROWS_BEFORE + ROWS_AFTER + 1, ROWS_PER_FRAME)
    return features[:, :num_frames].transpose(-1, -2)


def predicted_shape(features: Tensor) -> Tensor:
    """Return the mouth shape that features (..., 10, channels) encode: scaled opening and width, (..., 2).

    Each is the difference of two groups of channels, averaged over the rows, as uniform attention averages them.
    """
    wide, narrow, up, down = _groups(features.float().mean(-2))
    return torch.stack((up.mean(-1) - down.mean(-1), wide.mean(-1) - narrow.mean(-1)), -1) / OUTPUT_GAIN


def with_shape(features: Tensor, shape: Tensor) -> Tensor:
    """Return the features with the smallest change that makes their `predicted_shape` equal `shape` (..., 2)."""
    change = (shape - predicted_shape(features)) * (OUTPUT_GAIN / 2)
    offset = torch.zeros_like(features[..., 0, :], dtype=torch.float32)
    wide, narrow, up, down = _groups(offset)
    for group, sign, index in ((up, 1, 0), (down, -1, 0), (wide, 1, 1), (narrow, -1, 1)):
        group += sign * change[..., index : index + 1]
    return features + offset[..., None, :]


def _groups(channels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return views of channels (..., n): (wide, narrow) of n / 8 each, (up, down) of n / 4 each."""
    eighth = channels.shape[-1] // 8
    ends = (2 * eighth, 3 * eighth, 4 * eighth, 6 * eighth, 8 * eighth)
    wide, narrow, up, down = (channels[..., a:b] for a, b in pairwise(ends))
    return wide, narrow, up, down


def pretrain(encoder: AudioEncoder, clips: Sequence[SpokenClip], seed: int, steps: int) -> float:
    """Train the convolutions in place, on the CPU; return the opening's correlation over the last tenth of steps."""
    optimizer = torch.optim.AdamW(encoder.parameters(), 2e-3, weight_decay=0.01)
    results: list[tuple[Tensor, Tensor]] = []
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 2e-3 * (1 - step / steps) + 1e-5
        predicted, target = _predict(encoder, clips, step_generator(seed, step))
        optimizer.zero_grad()
        _error(predicted, target).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if step >= steps * 9 // 10:
            results.append((predicted.detach()[..., 0], target[..., 0]))
    optimizer.zero_grad()  # leftover gradients would count in the clipping of the U-Net's
    predictions, targets = (torch.cat(column) for column in zip(*results, strict=True))
    r = _r(predictions, targets)
    logger.info("audio encoder: predicted opening against the true one, r = %.2f", r)
    return r


def train(
    encoder: AudioEncoder,
    clips: Sequence[SpokenClip],
    folder: Path,
    loop: LoopSettings,
    report: Report | None = None,
) -> AudioEncoder:
    """Train the convolutions in a run of their own, which can be interrupted, on the CPU; return the averaged ones."""
    run = Run(folder, encoder, loop, torch.device("cpu"))

    def loss(_: int, generator: torch.Generator) -> dict[str, Tensor]:
        predicted, target = _predict(encoder, clips, generator)
        return {
            "loss": _error(predicted, target),
            "r_opening": torch.tensor(_r(predicted[..., 0], target[..., 0])),
            "r_width": torch.tensor(_r(predicted[..., 1], target[..., 1])),
        }

    run.train(loss, report)
    return run.average  # type: ignore[return-value]


def _predict(
    encoder: AudioEncoder, clips: Sequence[SpokenClip], generator: torch.Generator, batch: int = 32
) -> tuple[Tensor, Tensor]:
    """Return predicted and true shapes (batch, _FRAMES, 2) of windows drawn at random.

    With few voices the encoder overfits within a minute; dropout between the convolutions and voice augmentation
    prevent that.
    """
    mel, target = _draw(clips, batch, generator)
    hidden = F.gelu(encoder.conv1(mel))
    dropout = (torch.rand(hidden.shape, generator=generator) >= _DROPOUT) / (1 - _DROPOUT)
    rows = F.gelu(encoder.conv2(hidden * dropout)).transpose(1, 2)
    return predicted_shape(feature_windows(rows, _FRAMES)), target


def _error(predicted: Tensor, target: Tensor) -> Tensor:
    opening, width = (predicted - target).square().mean((0, 1))
    return opening + width / 2


def correlation(one: NDArray[np.floating[Any]], other: NDArray[np.floating[Any]]) -> float:
    """Return Pearson's r of two curves; 0 where either is constant."""
    if one.std() < 1e-6 or other.std() < 1e-6:
        return 0.0
    return float(np.corrcoef(one, other)[0, 1])


def _r(one: Tensor, other: Tensor) -> float:
    return correlation(one.detach().flatten().numpy(), other.flatten().numpy())


@torch.no_grad()
def prediction_scale(encoder: AudioEncoder, clips: Sequence[SpokenClip], seed: int) -> Tensor:
    """Return gains and offsets (2, 2) that map true shapes to the mean and standard deviation of the predictions.

    Predictions vary less than the truth. With true shapes on their scale, the U-Net opens the mouth at inference as far
    as people do.
    """
    predictions, targets = [], []
    for index in range(_SCALE_BATCHES):
        mel, target = _draw(clips, 32, step_generator(seed + 1, index))
        predictions.append(predicted_shape(feature_windows(encoder.convolve(mel), _FRAMES)).flatten(0, 1))
        targets.append(target.flatten(0, 1))
    predicted, true = torch.cat(predictions), torch.cat(targets)
    gain = predicted.std(0) / true.std(0).clamp_min(1e-3)
    return torch.stack((gain, predicted.mean(0) - gain * true.mean(0)))


def target_shape(opening: Tensor, width: Tensor) -> Tensor:
    """Return the training target of `predicted_shape` for openings and widths (...): (..., 2)."""
    return torch.stack((opening.float(), (width.float() - 1) * _WIDTH_GAIN), -1)


def _draw(clips: Sequence[SpokenClip], batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw windows of all kinds of clips: mel (batch, n_mels, columns) and target shapes (batch, _FRAMES, 2)."""
    groups = by_kind([clip for clip in clips if clip.n_frames >= _FRAMES])
    kinds = [groups[kind] for kind in _KINDS if kind in groups]
    if not kinds:
        raise InputError(
            f"no clip is {_FRAMES} frames long, as training the audio encoder requires", fix="add longer videos"
        )
    mels, shapes = [], []
    for index in range(batch):
        clip = kinds[index % len(kinds)].draw(generator)
        start = data.below(clip.n_frames - _FRAMES + 1, generator)
        end = start + _FRAMES
        mels.append(clip.mel[:, data.mel_columns(start, end)].float())
        shapes.append(target_shape(clip.opening[start:end], clip.width[start:end]))
    mel, target = augment.vary_voices(torch.stack(mels), generator), torch.stack(shapes)
    silent = slice(0, None, _SILENCE_INTERVAL)
    mel[silent] = augment.uniform(len(mel[silent]), *_SILENCE_MEL, generator)[:, None, None]
    target[silent] = 0.0
    return mel, target
