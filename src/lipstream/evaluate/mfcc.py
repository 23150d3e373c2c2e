"""Mel-frequency cepstral coefficients as SyncNet's authors computed them, with python_speech_features' defaults."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE_HZ = 16000
N_COEFFICIENTS = 13

_FRAME, _STEP, _FFT = 400, 160, 512
_N_BANDS, _LIFTER, _PREEMPHASIS = 26, 22, 0.97
_LEAST = float(np.finfo(float).eps)
# Spectra that are computed at a time: 30 s of sound.
_BLOCK = 3000


def mfcc(samples: NDArray[Any]) -> NDArray[np.float64]:
    """Return the coefficients of a recording, (13, columns) at 100 columns a second; the first is the log energy.

    samples: (n,) mono at 16 kHz, in the range of 16-bit integers, at least one. Frames of 400 samples every 160 without
    a window, FFT 512, 26 bands, the logarithm's orthonormal DCT, liftered. The last frame is padded with zeros.
    """
    signal = np.asarray(samples, np.float64)
    signal = np.append(signal[0], signal[1:] - _PREEMPHASIS * signal[:-1])
    n_columns = 1 + max(0, -(-(len(signal) - _FRAME) // _STEP))
    signal = np.pad(signal, (0, max(0, (n_columns - 1) * _STEP + _FRAME - len(signal))))
    frames = np.lib.stride_tricks.sliding_window_view(signal, _FRAME)[::_STEP][:n_columns]
    blocks = [_coefficients(frames[i : i + _BLOCK]) for i in range(0, n_columns, _BLOCK)]
    return np.ascontiguousarray(np.concatenate(blocks).T)


def _coefficients(frames: NDArray[np.float64]) -> NDArray[np.float64]:
    """Compute the coefficients (n, 13) of frames (n, 400)."""
    power = np.square(np.abs(np.fft.rfft(frames, _FFT))) / _FFT
    bands = power @ _bands().T
    cepstrum = np.log(np.where(bands == 0, _LEAST, bands)) @ _liftered_dct()
    energy = power.sum(axis=1)
    cepstrum[:, 0] = np.log(np.where(energy == 0, _LEAST, energy))
    return np.asarray(cepstrum)


@lru_cache(maxsize=1)
def _bands() -> NDArray[np.float64]:
    """Return the triangular bands (26, 257), their corners on whole bins, between 0 Hz and half the sample rate."""
    highest_mel = 2595 * np.log10(1 + SAMPLE_RATE_HZ / 2 / 700)
    corners_hz = 700 * (10 ** (np.linspace(0, highest_mel, _N_BANDS + 2) / 2595) - 1)
    corners = np.floor((_FFT + 1) * corners_hz / SAMPLE_RATE_HZ)
    bands = np.zeros((_N_BANDS, _FFT // 2 + 1))
    for band, (left, top, right) in enumerate(zip(corners, corners[1:], corners[2:], strict=False)):
        rising, falling = np.arange(int(left), int(top)), np.arange(int(top), int(right))
        bands[band, rising] = (rising - left) / (top - left)
        bands[band, falling] = (right - falling) / (right - top)
    return bands


@lru_cache(maxsize=1)
def _liftered_dct() -> NDArray[np.float64]:
    """Return the matrix (26, 13) of the orthonormal DCT-II with the sine lifter in it."""
    band, order = np.arange(_N_BANDS)[:, None], np.arange(N_COEFFICIENTS)
    dct = np.sqrt(2 / _N_BANDS) * np.cos(np.pi * order * (2 * band + 1) / (2 * _N_BANDS))
    dct[:, 0] /= np.sqrt(2)
    return np.asarray(dct * (1 + _LIFTER / 2 * np.sin(np.pi * order / _LIFTER)))
