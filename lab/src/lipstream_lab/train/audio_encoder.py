"""Training of the audio encoder: it learns to predict how far and how wide the mouth is open, and is then frozen.

With an encoder that predicts nothing yet, the U-Net would have to find the little that the sound explains among all
that a face shows; and what the U-Net's few windows per step ask of an encoder makes it forget: trained together, a
prepared encoder's loss was four times as high after 700 steps, with this very loss among the others.

No sound says exactly how far a mouth was open. A U-Net conditioned on guesses generates the mean of what may be: a
blur, hardly open. So in its training
the audio features are corrected to the true shape (`corrected`), on the scale on which guesses vary (`scale_of`): it
learns to generate what the features say, and at inference they hold guesses.
"""

from __future__ import annotations

import logging
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lipstream.audio_features.features import ROWS_AFTER, ROWS_BEFORE, ROWS_PER_FRAME
from lipstream.errors import InputError
from lipstream.models.whisper import AudioEncoder
from lipstream_lab.train import augment, data
from lipstream_lab.train.latents import LatentClip, by_kind
from lipstream_lab.train.loop import step_generator

logger = logging.getLogger(__name__)

_WIDTH_GAIN = 4.0  # widths lie close to 1
_FRAMES = 12
# One window of so many is silence over a shut mouth: clips of speech hold little of it. Mel of no sound, and of faint.
_SILENT_EVERY = 16
_SILENCE = (-1.5, -0.5)
_DROPOUT = 0.3
# The channels are so much larger than the shape they hold: the U-Net then notices the sound hundreds of steps earlier.
OUTPUT_GAIN = 5.0
_SCALE_BATCHES = 60


def feature_windows(rows: Tensor, num_frames: int) -> Tensor:
    """Return the ten rows that each frame is conditioned on: (windows, num_frames, 10, channels).

    rows: (windows, rows, channels) of mel frames that begin data.MEL_BEFORE before the first frame.
    """
    first = data.MEL_BEFORE // ROWS_PER_FRAME - ROWS_BEFORE
    features = rows[:, first:].unfold(1, ROWS_BEFORE + ROWS_AFTER + 1, ROWS_PER_FRAME)
    return features[:, :num_frames].transpose(-1, -2)


def predicted_shape(features: Tensor) -> Tensor:
    """Return the opening and width, each on its own scale, that features (..., 10, channels) hold: (..., 2).

    The mean over the rows of the difference between two groups of channels: what attention that looks everywhere sees.
    """
    wide, narrow, up, down = _groups(features.float().mean(-2))
    return torch.stack((up.mean(-1) - down.mean(-1), wide.mean(-1) - narrow.mean(-1)), -1) / OUTPUT_GAIN


def corrected(features: Tensor, wanted: Tensor) -> Tensor:
    """Return the features moved so that their `predicted_shape` is `wanted` (..., 2), by the least change there is."""
    change = (wanted - predicted_shape(features)) * (OUTPUT_GAIN / 2)
    moved = torch.zeros_like(features[..., 0, :], dtype=torch.float32)
    wide, narrow, up, down = _groups(moved)
    for group, sign, index in ((up, 1, 0), (down, -1, 0), (wide, 1, 1), (narrow, -1, 1)):
        group += sign * change[..., index : index + 1]
    return features + moved[..., None, :]


def _groups(channels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Views of the channels (..., n): an eighth for wide and for narrow, a quarter for up and for down."""
    eighth = channels.shape[-1] // 8
    ends = (2 * eighth, 3 * eighth, 4 * eighth, 6 * eighth, 8 * eighth)
    wide, narrow, up, down = (channels[..., a:b] for a, b in pairwise(ends))
    return wide, narrow, up, down


def pretrain(encoder: AudioEncoder, clips: list[LatentClip], seed: int, steps: int, batch: int = 32) -> float:
    """Train the convolutions in place, on the CPU; returns the opening's correlation over the last tenth of steps.

    Few voices are learnt by heart within a minute: dropout between the convolutions and other voices against that.
    """
    optimizer = torch.optim.AdamW(encoder.parameters(), 2e-3, weight_decay=0.01)
    seen: list[tuple[Tensor, Tensor]] = []
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 2e-3 * (1 - step / steps) + 1e-5
        generator = step_generator(seed, step)
        mel, said = _draw(clips, batch, generator)
        hidden = F.gelu(encoder.conv1(mel))
        kept = (torch.rand(hidden.shape, generator=generator) >= _DROPOUT) / (1 - _DROPOUT)
        rows = F.gelu(encoder.conv2(hidden * kept)).transpose(1, 2)
        guessed = predicted_shape(feature_windows(rows, _FRAMES))
        error = (guessed - said).square().mean((0, 1))
        optimizer.zero_grad()
        (error[0] + error[1] / 2).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if step >= steps * 9 // 10:
            seen.append((guessed.detach()[..., 0], said[..., 0]))
    optimizer.zero_grad()  # gradients left behind would count when the U-Net's are clipped
    both = [torch.cat(column).flatten().numpy() for column in zip(*seen, strict=True)]
    correlation = float(np.corrcoef(both[0], both[1])[0, 1])
    logger.info("audio encoder: predicted opening against the true one, r = %.2f", correlation)
    return correlation


@torch.no_grad()
def scale_of(encoder: AudioEncoder, clips: list[LatentClip], seed: int) -> Tensor:
    """Gains and offsets (2, 2) that give true openings and widths the mean and the spread that `predicted_shape` has.

    Guesses vary less than the truth. On this scale a U-Net opens a mouth as far at inference as people do.
    """
    guesses, truths = [], []
    for index in range(_SCALE_BATCHES):
        mel, said = _draw(clips, 32, step_generator(seed + 1, index))
        guesses.append(predicted_shape(feature_windows(encoder.convolve(mel), _FRAMES)).flatten(0, 1))
        truths.append(said.flatten(0, 1))
    guessed, true = torch.cat(guesses), torch.cat(truths)
    gain = guessed.std(0) / true.std(0).clamp_min(1e-3)
    return torch.stack((gain, guessed.mean(0) - gain * true.mean(0)))


def target_shape(opening: Tensor, width: Tensor) -> Tensor:
    """Return openings and widths on the scale of `predicted_shape`: (..., 2)."""
    return torch.stack((opening.float(), (width.float() - 1) * _WIDTH_GAIN), -1)


def _draw(clips: list[LatentClip], batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Windows of all kinds of clips: mel (batch, n_mels, columns), what they say (batch, _FRAMES, 2)."""
    kinds = list(by_kind([clip for clip in clips if clip.n_frames >= _FRAMES]).values())
    if not kinds:
        raise InputError(f"no clip is {_FRAMES} frames long, which the audio encoder's training takes")
    mels, shapes = [], []
    for index in range(batch):
        found = kinds[index % len(kinds)]
        clip = found[data.below(len(found), generator)]
        start = data.below(clip.n_frames - _FRAMES + 1, generator)
        end = start + _FRAMES
        mels.append(clip.mel[:, data.mel_columns(start, end)].float())
        shapes.append(target_shape(clip.opening[start:end], clip.width[start:end]))
    mel, shown = augment.other_voices(torch.stack(mels), generator), torch.stack(shapes)
    silent = slice(0, None, _SILENT_EVERY)
    mel[silent] = augment.uniform(len(mel[silent]), *_SILENCE, generator)[:, None, None]
    shown[silent] = 0.0
    return mel, shown
