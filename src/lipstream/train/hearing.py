"""Training of the audio encoder: it learns to tell how far the mouth is open, and is frozen before the U-Net listens.

Through an encoder that says nothing yet the U-Net would have to find the little that the sound explains among all that
a face shows; and what the U-Net's few windows a step ask of an encoder unteaches it: trained together, a prepared one's
loss was four times as high after 700 steps, with this very loss among the others.
"""

from __future__ import annotations

import logging

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lipstream.models.whisper import AudioEncoder
from lipstream.speech.features import ROWS_PER_FRAME
from lipstream.train import augment, data
from lipstream.train.latents import LatentClip, by_kind
from lipstream.train.loop import step_generator

logger = logging.getLogger(__name__)

# Pairs of groups of channels whose differences are made to be the opening and the width: strong enough for any
# attention to notice.
_OPENING, _WIDTH = (slice(-16, -8), slice(-8, None)), (slice(-32, -24), slice(-24, -16))
CHANNELS = 32  # that an encoder has at least
_WIDTH_GAIN = 4.0  # widths lie close to 1
_FRAMES = 12
# What the encoder says is made louder before the U-Net listens: it then notices the sound hundreds of steps earlier.
LOUDNESS = 5.0


def pretrain(encoder: AudioEncoder, clips: list[LatentClip], seed: int, steps: int, batch: int = 32) -> float:
    """Train the convolutions in place, on the CPU; returns the opening's correlation over the last tenth of steps."""
    optimizer = torch.optim.Adam(encoder.parameters(), 2e-3)
    seen: list[tuple[Tensor, Tensor]] = []
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 2e-3 * (1 - step / steps) + 1e-5
        mel, opening, width = _draw(clips, batch, step_generator(seed, step))
        rows = encoder.convolve(mel)
        predicted = _heard(rows, *_OPENING)
        loss = F.smooth_l1_loss(predicted, opening, beta=0.3)
        loss = loss + F.smooth_l1_loss(_heard(rows, *_WIDTH), (width - 1) * _WIDTH_GAIN, beta=0.3)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if step >= steps * 9 // 10:
            seen.append((predicted.detach(), opening))
    with torch.no_grad():
        encoder.conv2.weight.mul_(LOUDNESS)
        encoder.conv2.bias.mul_(LOUDNESS)  # type: ignore[union-attr]
    both = [torch.cat(column).flatten().numpy() for column in zip(*seen, strict=True)]
    correlation = float(np.corrcoef(both[0], both[1])[0, 1])
    logger.info("audio encoder: heard opening against the true one, r = %.2f", correlation)
    return correlation


def _heard(rows: Tensor, up: slice, down: slice) -> Tensor:
    """What two groups of channels tell of each frame: (windows, _FRAMES). rows: (windows, rows, channels)."""
    told = rows[..., up].mean(-1) - rows[..., down].mean(-1)
    first = data.MEL_BEFORE // ROWS_PER_FRAME  # the row at which frame 0 begins
    # Rows -1 to 2 of each frame: 80 ms round its middle.
    return told[:, first - 1 :].unfold(1, 4, ROWS_PER_FRAME)[:, :_FRAMES].mean(-1)


def _draw(clips: list[LatentClip], batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Windows of all kinds of clips alike: mel (batch, n_mels, columns), opening and width (batch, _FRAMES)."""
    kinds = list(by_kind([clip for clip in clips if clip.n_frames >= _FRAMES]).values())
    if not kinds:
        raise ValueError(f"no clip is {_FRAMES} frames long")
    mels, openings, widths = [], [], []
    for index in range(batch):
        found = kinds[index % len(kinds)]
        clip = found[data.below(len(found), generator)]
        start = data.below(clip.n_frames - _FRAMES + 1, generator)
        end = start + _FRAMES
        mels.append(augment.equalise(clip.mel[None, :, data.mel_columns(start, end)].float(), generator))
        openings.append(clip.opening[start:end])
        widths.append(clip.width[start:end])
    return torch.cat(mels), torch.stack(openings).float(), torch.stack(widths).float()
