"""Audio features of speech that is still being spoken: those of the whole recording, where enough of it follows.

The log-mel columns are computed as their samples come, each once. What is not known yet is to the encoder what lies
past a recording's end. An encoder of convolutions alone, the bundled model's, sees a little way round each row only: it
computes just the rows that are asked for, and once that little way is known they are those of the whole recording. One
with attention, Whisper's, encodes its block of 30 s again for each window.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import Tensor

from lipstream.audio_features import mel
from lipstream.audio_features.features import (
    ROWS_AFTER,
    ROWS_BEFORE,
    ROWS_PER_FRAME,
    Attempts,
    Encoder,
    encode,
    first_block_of,
    first_row_of,
    frame_windows,
    overlap_columns,
)
from lipstream.models.whisper import AudioEncoder
from lipstream.settings import FRAME_RATE_HZ


class SpokenMel:
    """Log10 mel energies of a recording that grows, before the floor; columns are counted from its start.

    maximum: the largest so far, -inf before the first.
    """

    def __init__(self, n_mels: int) -> None:
        self._spectrogram = mel.Spectrogram(n_mels)
        self._samples = torch.zeros(0)  # those that the next column begins with
        self._columns = torch.zeros(n_mels, 0)
        self._has_begun = self.is_ended = False
        self.first, self.maximum = 0, -math.inf

    @property
    def stop(self) -> int:
        """Column after the last one that is known."""
        return self.first + self._columns.shape[1]

    def add(self, samples: Tensor) -> None:
        """Add samples: (n,) float32, mono, 16 kHz, in [-1, 1]."""
        self._samples = torch.cat((self._samples, samples))
        if not self._has_begun and len(self._samples) > mel.PAD:
            self._samples = mel.mirrored_before(self._samples)
            self._has_begun = True
        if self._has_begun:
            self._take((len(self._samples) - mel.FFT_SIZE) // mel.HOP_SIZE + 1)

    def end(self) -> None:
        """Say that nothing more comes."""
        self._samples = mel.mirrored_after(self._samples, has_begun=self._has_begun)
        self._take((len(self._samples) - mel.FFT_SIZE) // mel.HOP_SIZE)  # Whisper drops the last column
        self.is_ended = True

    def part(self, start: int, stop: int) -> Tensor:
        """Return the columns from `start` to before `stop`, fewer where they are not known: (n_mels, columns)."""
        assert start >= self.first
        return self._columns[:, start - self.first : max(0, stop - self.first)]

    def forget(self, before: int) -> None:
        """Let go of the columns before one."""
        n = min(max(0, before - self.first), self._columns.shape[1])
        self._columns, self.first = self._columns[:, n:].clone(), self.first + n

    def _take(self, n: int) -> None:
        if n <= 0:
            return
        new = self._spectrogram(self._samples[: (n - 1) * mel.HOP_SIZE + mel.FFT_SIZE])
        self._samples = self._samples[n * mel.HOP_SIZE :]
        self._columns = torch.cat((self._columns, new), 1)
        self.maximum = max(self.maximum, float(new.max()))


class SpokenFeatures:
    """What conditions each frame; see `lipstream.audio_features.features`, whose blocks, overlap and rows these are."""

    def __init__(
        self, encoder: Encoder, attempts: Attempts | None, frame_rate: Fraction, overlap_s: float = 0.0
    ) -> None:
        self._encoder, self._attempts, self._frame_rate, self._overlap_s = encoder, attempts, frame_rate, overlap_s
        self._overlap = overlap_columns(encoder.config, overlap_s)
        self._step = 2 * encoder.config.n_audio_ctx - self._overlap

    def windows(self, spoken: SpokenMel, first_frame: int, n_frames: int, maximum: float) -> list[Tensor]:
        """Return the features of frames, each (tokens, dim); see `frame_windows`. maximum: that sets the floor."""
        start = max(0, self._row(first_frame) - ROWS_BEFORE)
        stop = self._row(first_frame + n_frames - 1) + ROWS_AFTER + 2
        rows = self._rows(spoken, self._first_block(first_frame), start, stop, maximum)
        return list(frame_windows(rows, n_frames, first_frame, start, frame_rate=self._frame_rate))

    def first_column(self, first_frame: int) -> int:
        """Return the first column that frames from `first_frame` on need."""
        return self._first_block(first_frame) * self._step

    def _first_block(self, frame: int) -> int:
        return first_block_of(frame, self._encoder.config, self._frame_rate, self._overlap_s)

    def _row(self, frame: int) -> int:
        return math.floor(ROWS_PER_FRAME * FRAME_RATE_HZ * frame / self._frame_rate)

    def _rows(self, spoken: SpokenMel, first_block: int, start: int, stop: int, maximum: float) -> Iterator[Tensor]:
        """Yield rows start .. stop-1 of the recording, as far as it goes, from one block after another."""
        config, shared = self._encoder.config, self._overlap // (2 * ROWS_PER_FRAME)
        for block in itertools.count(first_block):
            columns = spoken.part(block * self._step, block * self._step + 2 * config.n_audio_ctx)
            is_last = spoken.is_ended and spoken.stop - (block + 1) * self._step <= self._overlap
            n_rows = columns.shape[1] // ROWS_PER_FRAME
            end = n_rows if is_last else min(n_rows, config.n_audio_ctx - shared)
            first = first_row_of(block, config, self._overlap_s)  # of the recording, the block's row at `begin`
            begin = shared if block else 0
            one, other = begin + max(0, start - first), min(end, begin + stop - first)
            if one < other:
                yield self._encoded(mel.normalise(columns, maximum), one, other)
            if first + end - begin >= stop or is_last or not columns.shape[1]:
                return

    def _encoded(self, columns: Tensor, start: int, stop: int) -> Tensor:
        """Return rows start .. stop-1 of a block, (rows, layers + 1, dim), float32."""
        size = 2 * self._encoder.config.n_audio_ctx
        attempts = [self._encoder] if self._attempts is None else self._attempts(start, stop - 1)
        for encoder in attempts:
            if isinstance(encoder, AudioEncoder) and encoder.config.n_audio_layer == 0:
                states = _convolved(encoder, columns, start, stop)
            else:
                states = encode(encoder, F.pad(columns, (0, size - columns.shape[1])))[start:stop]
            if self._attempts is None or torch.isfinite(states).all():
                break
        return states


@torch.inference_mode()
def _convolved(encoder: AudioEncoder, columns: Tensor, start: int, stop: int) -> Tensor:
    """Return rows of a block that is not convolved as a whole: only what they depend on is."""
    size, reach = 2 * encoder.config.n_audio_ctx, sum(encoder.config.kernel_sizes)  # even, and more than far enough
    first = max(0, ROWS_PER_FRAME * start - reach)
    last = min(size, ROWS_PER_FRAME * stop + reach)
    known = columns[:, first:last]
    piece = F.pad(known, (0, last - first - known.shape[1]))
    rows = encoder.convolve(piece[None].to(encoder.device, encoder.dtype))[0]
    offset = first // ROWS_PER_FRAME
    return (rows[start - offset : stop - offset] + encoder.positional_embedding[start:stop])[:, None].float()
