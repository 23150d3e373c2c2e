"""Compute Whisper's log-mel spectrogram (Radford et al. 2022) block by block, for recordings of any length.

As published: mono, 16 kHz, FFT 400, hop 160, periodic Hann, 80 Slaney mel bands, the last STFT column dropped,
log10 clamped at 1e-10, floor at the recording's maximum - 8, then (x + 4) / 4.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SAMPLE_RATE_HZ = 16000
FFT_SIZE = 400
HOP_SIZE = 160
BLOCK_FRAMES = 3000
N_MELS = 80
"""Mel bands of every known model's audio encoder."""

TYPICAL_MAXIMUM = 1.2
"""About the largest log10 mel energy of recorded speech, for silence that stands for a pause in such."""

_DYNAMIC_RANGE = 8.0
PAD = FFT_SIZE // 2
"""Samples that a column needs before and after its middle."""


def mel_filters(n_mels: int) -> Tensor:
    """Return Slaney-normalised triangular filters on the Slaney mel scale: (n_mels, FFT_SIZE // 2 + 1), float32."""
    edges = _mel_to_hz(np.linspace(_hz_to_mel(0.0), _hz_to_mel(SAMPLE_RATE_HZ / 2), n_mels + 2))
    bins = np.arange(FFT_SIZE // 2 + 1) * (SAMPLE_RATE_HZ / FFT_SIZE)
    lower, centre, upper = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    triangles = np.minimum((bins - lower) / (centre - lower), (upper - bins) / (upper - centre))
    area = 2.0 / (upper - lower)
    return torch.from_numpy((np.maximum(triangles, 0.0) * area).astype(np.float32))


def _hz_to_mel(hz: float) -> float:
    # Slaney's scale: linear (3 mel per 200 Hz) below 1 kHz, logarithmic (27 steps per factor 6.4) above.
    return hz * 3 / 200 if hz < 1000 else 15 + 27 * float(np.log(hz / 1000) / np.log(6.4))


def _mel_to_hz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(mel < 15, mel * 200 / 3, 1000 * np.exp((mel - 15) * np.log(6.4) / 27))


def log_mel_blocks(
    samples: Iterable[NDArray[np.float32]], n_mels: int, block_frames: int = BLOCK_FRAMES, first_block: int = 0
) -> Iterator[Tensor]:
    """Yield log10 mel energies of a recording, before the floor: blocks (n_mels, up to `block_frames`), float32.

    samples: mono at 16 kHz in [-1, 1], in pieces of any length. The blocks are those of the whole recording's
    spectrogram: n_samples // HOP_SIZE frames in all, mirrored at the recording's two ends only. first_block: those
    before it are left out, without being computed.
    """
    spectrogram = Spectrogram(n_mels)
    for piece in _padded_pieces(samples, block_frames * HOP_SIZE, first_block):
        yield spectrogram(piece)


class Spectrogram:
    """Computes log10 mel energies of samples, without anything before and after them."""

    def __init__(self, n_mels: int) -> None:
        self._filters, self._window = mel_filters(n_mels), torch.hann_window(FFT_SIZE)

    def __call__(self, samples: Tensor) -> Tensor:
        """Return (n_mels, columns), float32, of (n,) samples; column i begins with sample HOP_SIZE i."""
        spectrum = torch.stft(samples, FFT_SIZE, HOP_SIZE, window=self._window, center=False, return_complex=True)
        energy = self._filters @ spectrum.abs().square()
        return energy.clamp_min(1e-10).log10()


def log_mel_maximum(samples: Iterable[NDArray[np.float32]], n_mels: int = N_MELS) -> float:
    """Return the largest log10 mel energy of a recording, which sets the floor of all its blocks; 0 without a frame.

    samples: as for `log_mel_blocks`.
    """
    return max((float(block.max()) for block in log_mel_blocks(samples, n_mels)), default=0.0)


def _padded_pieces(samples: Iterable[NDArray[np.float32]], piece_size: int, first: int) -> Iterator[Tensor]:
    """Cut a stream into pieces of `piece_size` samples with what the STFT needs on both sides of each, from `first`."""
    held = torch.zeros(0)
    started = first > 0  # only the first piece begins with a mirror
    n_unused = max(0, first * piece_size - PAD)
    for part in samples:
        if n_unused >= len(part):
            n_unused -= len(part)
            continue
        part, n_unused = part[n_unused:], 0
        held = torch.cat((held, torch.from_numpy(part)))
        if not started and len(held) > PAD:
            held = mirrored_before(held)
            started = True
        # The last frame of a piece reaches FFT_SIZE - HOP_SIZE samples into the next one; one sample more stays
        # back so that the end of the recording, which is mirrored, is never cut off from its last samples.
        while started and len(held) > piece_size + FFT_SIZE:
            yield held[: piece_size + FFT_SIZE - HOP_SIZE]
            held = held[piece_size:]
    held = mirrored_after(held, has_begun=started)
    # The whole recording's last column, centred on its end, is the one that Whisper drops.
    n_frames = (len(held) - FFT_SIZE) // HOP_SIZE
    while n_frames > 0:
        frames = min(n_frames, piece_size // HOP_SIZE)
        yield held[: (frames - 1) * HOP_SIZE + FFT_SIZE]
        held = held[frames * HOP_SIZE :]
        n_frames -= frames


def mirrored_before(samples: Tensor) -> Tensor:
    """Return the first samples of a recording, more than PAD, with their mirror before them."""
    return torch.cat((samples[1 : PAD + 1].flip(0), samples))


def mirrored_after(samples: Tensor, *, has_begun: bool) -> Tensor:
    """Return the last samples of a recording with their mirror after them.

    has_begun: its beginning has been mirrored. A recording shorter than the mirror is long gets silence around it.
    """
    silence = torch.zeros(PAD)
    return torch.cat((samples, samples[-PAD - 1 : -1].flip(0)) if has_begun else (silence, samples, silence))


def normalise(log_mel: Tensor, maximum: float) -> Tensor:
    """Floor at the recording's `maximum` - 8 and scale to about [-1, 1]; the shape is unchanged."""
    return (log_mel.clamp_min(maximum - _DYNAMIC_RANGE) + 4.0) / 4.0
