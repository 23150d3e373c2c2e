"""Compute the audio features that condition the U-Net at each frame of 25 fps video.

As published for LatentSync: the hidden states of Whisper's encoder at 50 rows per second, of which a frame takes ten.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from lipstream.audio_features import mel
from lipstream.models.whisper import ROWS_PER_FRAME_WINDOW, AudioEncoderConfig
from lipstream.settings import FRAME_RATE_HZ

ROWS_PER_FRAME = 2
ROWS_BEFORE = 4
ROWS_AFTER = ROWS_PER_FRAME_WINDOW - ROWS_BEFORE - 1


class Encoder(Protocol):
    """What models.whisper.AudioEncoder, or an engine in its place, does."""

    @property
    def config(self) -> AudioEncoderConfig: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def __call__(self, mel: Tensor) -> Tensor: ...


SampleSource = Callable[[], Iterable[NDArray[np.float32]]]
# Given the first and last frame (25 fps) of a block: the encoder, then those to try where its result is not finite.
Attempts = Callable[[int, int], Iterator[Encoder]]


def feature_rows(
    open_samples: SampleSource,
    encoder: Encoder,
    attempts: Attempts | None = None,
    maximum: float | None = None,
    first_block: int = 0,
    overlap_s: float = 0.0,
) -> Iterator[Tensor]:
    """Yield the hidden states of a recording, 50 rows per second, in blocks of up to 30 s.

    open_samples: returns the recording from its beginning (mono, 16 kHz, in [-1, 1], in pieces). maximum: what
    `mel.log_mel_maximum` returns for it with the encoder's number of mel bands; without it open_samples is called
    twice, first to find it. attempts: given, they encode in place of `encoder`; without it, whether a block is finite
    is not checked. first_block: those before it are left out, see `first_block_of`. overlap_s: how much of the
    recording two blocks share, s: rows beside a block's end, which have no context there, come from the other one. 0 is
    as published.

    Yields (rows, layers + 1, dim), float32, on the encoder's device. A block of n mel frames gives n // 2 rows.
    """
    n_mels, n_rows = encoder.config.n_mels, first_row_of(first_block, encoder.config, overlap_s)
    if maximum is None:
        maximum = mel.log_mel_maximum(open_samples(), n_mels)
    block_frames, overlap = 2 * encoder.config.n_audio_ctx, overlap_columns(encoder.config, overlap_s)
    blocks = mel.log_mel_blocks(open_samples(), n_mels, block_frames - overlap, first_block)
    for index, (block, is_last) in enumerate(_overlapping(blocks, overlap), first_block):
        n_frames = block.shape[1]
        padded = F.pad(mel.normalise(block, maximum), (0, block_frames - n_frames))
        # Half of what two blocks share belongs to each.
        start = overlap // (2 * ROWS_PER_FRAME) if index else 0
        stop = n_frames // ROWS_PER_FRAME - (0 if is_last else overlap // (2 * ROWS_PER_FRAME))
        first, last = n_rows // ROWS_PER_FRAME, (n_rows + stop - start - 1) // ROWS_PER_FRAME
        for tried in [encoder] if attempts is None else attempts(first, last):
            states = encode(tried, padded)[start:stop]
            if attempts is None or torch.isfinite(states).all():
                break
        n_rows += stop - start
        yield states


def first_block_of(
    frame: int, config: AudioEncoderConfig, frame_rate: int | Fraction = FRAME_RATE_HZ, overlap_s: float = 0.0
) -> int:
    """Return the block of `feature_rows` in which the audio features of a frame begin."""
    row = math.floor(ROWS_PER_FRAME * FRAME_RATE_HZ * frame / Fraction(frame_rate)) - ROWS_BEFORE
    overlap = overlap_columns(config, overlap_s)
    return max(0, row - overlap // (2 * ROWS_PER_FRAME)) // (config.n_audio_ctx - overlap // ROWS_PER_FRAME)


def first_row_of(block: int, config: AudioEncoderConfig, overlap_s: float = 0.0) -> int:
    """Return the first row that a block of `feature_rows` gives."""
    overlap = overlap_columns(config, overlap_s)
    rows = config.n_audio_ctx - overlap // ROWS_PER_FRAME
    return block * rows + overlap // (2 * ROWS_PER_FRAME) if block else 0


def overlap_columns(config: AudioEncoderConfig, overlap_s: float) -> int:
    """Return how many mel frames two blocks share: whole video frames, at most half a block."""
    mel_frames = mel.SAMPLE_RATE_HZ // mel.HOP_SIZE // FRAME_RATE_HZ
    return min(round(overlap_s * FRAME_RATE_HZ), config.n_audio_ctx // mel_frames) * mel_frames


def _overlapping(blocks: Iterable[Tensor], overlap: int) -> Iterator[tuple[Tensor, bool]]:
    """Yield each block (n_mels, columns) with the first `overlap` columns of the next one, and whether it is the last.

    Without an overlap, nothing depends on which is the last, and none waits for the next one.
    """
    held: Tensor | None = None
    for block in blocks:
        if not overlap:
            yield block, True
            continue
        if held is not None:
            is_last = block.shape[1] <= overlap
            yield torch.cat((held, block[:, :overlap]), 1), is_last
            if is_last:
                return
        held = block
    if held is not None:
        yield held, True


@torch.inference_mode()
def encode(encoder: Encoder, block: Tensor) -> Tensor:
    """Return the hidden states (rows, layers + 1, dim), float32, of normalised mel frames (n_mels, 2 * n_audio_ctx)."""
    states: Tensor = encoder(block[None].to(encoder.device, encoder.dtype))[0]
    return states.float()


def frame_windows(
    rows: Iterable[Tensor],
    n_frames: int,
    first_frame: int = 0,
    first_row: int = 0,
    *,
    frame_rate: int | Fraction = FRAME_RATE_HZ,
) -> Iterator[Tensor]:
    """Yield the audio features of each frame, (10 * (layers + 1), dim): rows 2i - 4 to 2i + 5 at 25 frames a second.

    At other rates they are those at the frame's time, between two rows interpolated.
    rows: blocks (rows, layers + 1, dim) in order; only those still needed are held. Frames past the recording's end
    get its last rows. A recording too short for a single row yields nothing. first_frame: those before it are left
    out; `rows` may then begin with the recording's row `first_row`.
    """
    source = iter(rows)
    held: Tensor | None = None
    first, ended = first_row, False  # index of held[0] in the recording; whether the source is exhausted
    for i in range(first_frame, first_frame + n_frames):
        place = ROWS_PER_FRAME * FRAME_RATE_HZ * i / Fraction(frame_rate)
        row = math.floor(place)
        start, stop = row - ROWS_BEFORE, row + ROWS_AFTER + (place > row)
        while not ended and (held is None or first + len(held) <= stop):
            block = next(source, None)
            ended = block is None
            if block is not None:
                held = block if held is None else torch.cat((held, block))
        if held is None or len(held) == 0:
            return
        drop = min(max(start - first, 0), len(held) - 1)
        held, first = held[drop:], first + drop
        index = torch.arange(start, stop + 1, device=held.device).clamp(0, first + len(held) - 1) - first
        taken = held[index.clamp_min(0)]
        yield (torch.lerp(taken[:-1], taken[1:], float(place - row)) if place > row else taken).flatten(0, 1)
